"""Paths inside a snapshot: what an origin may call a file, decided before anything touches a disk.

A name comes from the network and becomes a path on the node, so it is checked here once, for every
source. The rules are those of Linux filesystems (a component is 1 to 255 bytes of UTF-8 without NUL
or slash) plus ours: relative, no dot components, no control characters, and no two names that a
case-folding or Unicode-normalising reader would take for one file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from modelcache.errors import UnsafePath

COMPONENT_BYTES_MAX: Final = 255  # NAME_MAX on ext4, xfs, btrfs and tmpfs
PATH_BYTES_MAX: Final = 3072  # PATH_MAX is 4096; the store's own prefix needs the rest
DEPTH_MAX: Final = 64
SHOWN_CHARACTERS: Final = 200  # of a name in a message; an origin may send megabytes
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C1 controls steer terminals too


def check_path(path: str) -> str:
    """Return `path` if it can stand inside a snapshot. Raises UnsafePath, saying why not."""
    reason = _why_unsafe(path)
    if reason is not None:
        raise UnsafePath(f"file name {_shown(path)} cannot be placed in a snapshot: {reason}")
    return path


def check_tree(paths: Iterable[str]) -> None:
    """Check that distinct, individually safe `paths` can live in one tree.

    Raises UnsafePath when two of them would be one file to a case-folding reader, or when one is a
    file where another needs a directory.
    """
    seen: dict[str, str] = {}
    for path in paths:
        folded = _folded(path)
        twin = seen.get(folded)
        if twin is not None:
            what = "appears twice"
            if twin != path:
                what = f"differs only by case or the encoding of accents from {_shown(twin)}"
            raise UnsafePath(f"file name {_shown(path)} cannot be placed in a snapshot: it {what}")
        seen[folded] = path
    for path in seen.values():
        for parent in parents(path):
            if _folded(parent) in seen:
                raise UnsafePath(
                    f"file name {_shown(path)} cannot be placed in a snapshot: {_shown(parent)} is "
                    "a file and would have to be a directory; exclude one of them",
                )


def parents(path: str) -> list[str]:
    """`a/b/c` gives `["a", "a/b"]`: the directories a tree needs for it."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _folded(path: str) -> str:
    """Canonical caseless form (Unicode 3.13, D145)."""
    if path.isascii():
        return path.lower()
    once = unicodedata.normalize("NFD", path).casefold()
    return unicodedata.normalize("NFD", once)


def _shown(path: str) -> str:
    return repr(path[:SHOWN_CHARACTERS] + ("…" if len(path) > SHOWN_CHARACTERS else ""))


def _why_unsafe(path: str) -> str | None:
    if not path:
        return "it is empty"
    if path.startswith("/"):
        return "it is absolute"
    if _CONTROL.search(path):
        return "it has a control character"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if len(encoded) > PATH_BYTES_MAX:
        return f"it is longer than {PATH_BYTES_MAX} bytes"
    return _why_unsafe_components(path.split("/"))


def _why_unsafe_components(parts: list[str]) -> str | None:
    if len(parts) > DEPTH_MAX:
        return f"it is nested deeper than {DEPTH_MAX} directories"
    for part in parts:
        if not part:
            return "it has an empty component"
        if part in {".", ".."}:
            return f"it has a {part!r} component"
        if len(part) > COMPONENT_BYTES_MAX // 4 and len(part.encode()) > COMPONENT_BYTES_MAX:
            return f"a component is longer than {COMPONENT_BYTES_MAX} bytes"
    return None
