"""Mirrors: other places that hold what a ref names, found by rewriting its start.

A rewrite is a line `PREFIX => REPLACEMENT`; the prefix matches whole components, and options of the
replacement become options of the new ref:

    hf:// => s3://mirror/hf/?endpoint=http://minio:9000
    oci://docker.io/ => oci://registry.local:5000/hub/
    hf:// => hf://?endpoint=https://hub.local

Options of the ref that say what is meant (a revision, a platform) must mean the same at the mirror,
so they go along where its scheme knows them; where it does not the mirror cannot serve that ref.
Options that say where and as whom belong to the place that is replaced, and stay behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from modelcache.domain.places import Scheme
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import InvalidConfig, InvalidRef

ARROW: Final = "=>"
_OF_THE_PLACE: Final = frozenset(
    {"anonymous", "endpoint", "link", "plain-http", "profile", "region", "requester-pays"}
    | {"style", "user-project"}
)
_WEB: Final = frozenset({Scheme.HTTP, Scheme.HTTPS})


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One line of the table. options: of the replacement, without their mark."""

    prefix: str
    replacement: str
    options: str


def parse_rewrites(lines: Iterable[str]) -> tuple[Rewrite, ...]:
    """Read the table. Raises InvalidConfig, naming the line."""
    return tuple(_parse(line) for line in lines if line.strip())


def places(ref: Ref, rewrites: Iterable[Rewrite], *, only: bool = False) -> list[Ref]:
    """Where to ask for `ref`, in order: its mirrors, then its own place.

    only: not its own place, if it has a mirror.
    """
    found = [place for rewrite in rewrites if (place := _apply(rewrite, ref)) is not None]
    return found if found and only else [*found, ref]


def _parse(line: str) -> Rewrite:
    prefix, arrow, target = (part.strip() for part in line.partition(ARROW))
    shown = line.strip()[:200]
    if not arrow or "://" not in prefix or "://" not in target:
        raise InvalidConfig(
            f"mirrors.rewrite: {shown!r} is not of the form 'hf:// {ARROW} s3://bucket/hf/'"
        )
    for text in (prefix, target):
        name = text.partition("://")[0]
        if name not in list(Scheme):
            raise InvalidConfig(f"mirrors.rewrite: {shown!r}: unknown scheme {name!r}")
    if "?" in prefix or "#" in prefix:
        raise InvalidConfig(f"mirrors.rewrite: {shown!r}: a prefix has no options")
    replacement, _, options = target.partition(_mark(target))
    return Rewrite(prefix, replacement, options)


def _apply(rewrite: Rewrite, ref: Ref) -> Ref | None:
    """The ref at the mirror; None where the rewrite is not for it."""
    bare = str(replace(ref, options=(), files=type(ref.files)()))
    rest = bare.removeprefix(rewrite.prefix)
    inside = rewrite.prefix.endswith("/") or not rest or rest[0] in "/:@"
    if rest == bare or not inside:
        return None
    text = rewrite.replacement + rest
    if rewrite.options:
        text += _mark(text) + rewrite.options
    try:
        place = parse_ref(text)
        kept = [pair for pair in ref.options if pair[0] not in _OF_THE_PLACE]
        given = dict(place.options)
        merged = replace(
            place,
            options=tuple(sorted({**dict(kept), **given}.items())),
            files=type(ref.files)(
                (*ref.files.include, *place.files.include),
                (*ref.files.exclude, *place.files.exclude),
            ),
        )
        return parse_ref(str(merged))  # an option that the mirror's scheme does not know is refused
    except InvalidRef:
        return None


def _mark(text: str) -> str:
    return "#" if Scheme(text.partition("://")[0]) in _WEB else "?"
