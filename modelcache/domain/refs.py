"""Refs: what a user writes to name a model, parsed once and printed back to the same text.

    s3://bucket/prefix?endpoint=http://minio:9000&include=*.safetensors
    gs://bucket/prefix?user-project=billed
    oci://registry/repository:tag@sha256:…?platform=linux/amd64
    hf://org/name@revision/folder
    https://host/path/?token=x#include=*.json
    file:///models/llama?exclude=*.bin

Grammar: `SCHEME://AUTHORITY/PATH`, then options as `name=value` joined by `&`. Options follow `?`,
except for http(s), where `?` belongs to the server and options follow `#`, which never leaves the
client. `%XX` is decoded in paths (except http's, which are kept as the server wants them) and in
option values; printing encodes the least that makes it parse back. `include` and `exclude` may be
repeated; a glob's `*` crosses slashes, and one without a slash also matches the bare file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import unquote, urlsplit

from modelcache.domain.places import Scheme, check_place
from modelcache.errors import InvalidRef

REF_BYTES_MAX: Final = 8192  # a pod annotation holds 256 KiB in all; S3 keys end at 1 KiB


_FILTERS: Final = frozenset({"include", "exclude"})
_OPTIONS: Final[Mapping[Scheme, frozenset[str]]] = {
    Scheme.S3: frozenset(
        {"endpoint", "region", "profile", "style", "requester-pays", "version-id", "anonymous"},
    ),
    Scheme.GS: frozenset({"endpoint", "user-project", "generation", "anonymous"}),
    Scheme.OCI: frozenset({"platform", "plain-http", "path"}),
    Scheme.HF: frozenset({"endpoint", "revision", "all-files"}),
    Scheme.HTTP: frozenset({"index"}),
    Scheme.HTTPS: frozenset({"index"}),
    Scheme.FILE: frozenset({"link"}),
}
_WEB: Final = frozenset({Scheme.HTTP, Scheme.HTTPS})
# What would end the path, an option or an entry of a comma-separated annotation, or vanish in a
# terminal; and the percent sign itself.
_ESCAPED_IN_PATH: Final = re.compile(r"[%?#,\s\x00-\x1f\x7f]")
_ESCAPED_IN_VALUE: Final = re.compile(r"[%&#,\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Which of an origin's files belong to the model."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def accepts(self, path: str) -> bool:
        """Whether `path` (relative) is wanted: included by some glob and excluded by none."""
        if self.include and not any(_matches(path, glob) for glob in self.include):
            return False
        return not any(_matches(path, glob) for glob in self.exclude)

    def prunes(self, directory: str) -> bool:
        """Whether an exclude glob rules out everything below `directory`, so it need not be read.

        That is certain for a glob that ends in a star and matches already without what follows.
        """
        inside = f"{directory}/"
        return any(glob.endswith("*") and fnmatchcase(inside, glob) for glob in self.exclude)


@dataclass(frozen=True, slots=True)
class Ref:
    """One parsed ref. `str(ref)` parses back to an equal ref."""

    scheme: Scheme
    authority: str
    path: str
    options: tuple[tuple[str, str], ...] = ()
    files: FileFilter = FileFilter()

    def option(self, name: str) -> str | None:
        """Value of the option `name`, if given."""
        return dict(self.options).get(name)

    def flag(self, name: str) -> bool:
        """Whether the option `name` is set to something that means yes."""
        return (self.option(name) or "") in {"1", "true", "yes"}

    def filtered(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Ref:
        """The same ref with more globs."""
        files = FileFilter(
            (*self.files.include, *include),
            (*self.files.exclude, *exclude),
        )
        return replace(self, files=files)

    def origin(self) -> Ref:
        """The same ref without its file filter: where its files come from."""
        return replace(self, files=FileFilter())

    def redacted(self) -> str:
        """The ref for logs and reports: a URL's query may be a credential, so it is left out."""
        if self.scheme in _WEB and "?" in self.path:
            return str(replace(self, path=self.path.split("?", 1)[0] + "?..."))
        return str(self)

    def __str__(self) -> str:
        """The canonical text."""
        web = self.scheme in _WEB
        path = self.path if web else _escape(self.path, _ESCAPED_IN_PATH)
        pairs = [
            *self.options,
            *(("include", glob) for glob in self.files.include),
            *(("exclude", glob) for glob in self.files.exclude),
        ]
        tail = "&".join(f"{name}={_escape(value, _ESCAPED_IN_VALUE)}" for name, value in pairs)
        mark = "#" if web else "?"
        return f"{self.scheme}://{self.authority}/{path}" + (mark + tail if tail else "")


def parse_ref(text: str) -> Ref:
    """Parse what a user wrote.

    Raises InvalidRef with the reason and, where there is one, the likely correction. The text of a
    URL's query is never repeated in the message.
    """
    text = text.strip()
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRef("ref is not valid Unicode") from None
    if size > REF_BYTES_MAX:
        raise InvalidRef(f"ref is longer than {REF_BYTES_MAX} bytes")
    name, separator, rest = text.partition("://")
    if not separator:
        raise InvalidRef(_no_scheme(text))
    try:
        scheme = Scheme(name.lower())
    except ValueError:
        known = ", ".join(f"{known}://" for known in Scheme)
        raise InvalidRef(f"unknown scheme {name!r} in ref; known are {known}") from None
    body, _, tail = rest.partition("#" if scheme in _WEB else "?")
    options, files = _parse_options(scheme, tail)
    if scheme in _WEB:
        _check_url(scheme, body)
        end = re.search(r"[/?]|$", body)
        authority = body[: end.start()] if end else body  # `https://host?query` has no slash
        return Ref(scheme, authority, body[len(authority) :].removeprefix("/"), options, files)
    authority, _, path = body.partition("/")
    path = _unquote(path)
    check_place(scheme, authority, path)
    if scheme is Scheme.FILE:
        authority = ""  # `localhost` says the same
    return Ref(scheme, authority, path, options, files)


def _matches(path: str, glob: str) -> bool:
    if fnmatchcase(path, glob):
        return True
    return "/" not in glob and fnmatchcase(path.rpartition("/")[2], glob)


def _escape(text: str, escaped: re.Pattern[str]) -> str:
    return escaped.sub(lambda hit: "".join(f"%{byte:02X}" for byte in hit[0].encode()), text)


def _unquote(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRef("percent escapes in the ref are not valid UTF-8") from None


def _no_scheme(text: str) -> str:
    if text.startswith(("/", "./", "../", "~")):
        absolute = text if text.startswith("/") else "/absolute/path"
        return f"ref has no scheme; for a local directory write file://{absolute}"
    return f"ref {text.split('?', 1)[0][:80]!r} has no scheme; write for example s3://bucket/prefix"


def _parse_options(scheme: Scheme, tail: str) -> tuple[tuple[tuple[str, str], ...], FileFilter]:
    options: dict[str, str] = {}
    globs: dict[str, list[str]] = {"include": [], "exclude": []}
    for pair in filter(None, tail.split("&")):
        name, separator, raw = pair.partition("=")
        value = _unquote(raw) if separator or name in _FILTERS else "1"
        if name in _FILTERS and value:
            globs[name].append(value)
        elif name not in _OPTIONS[scheme] | _FILTERS:
            known = ", ".join(sorted(_OPTIONS[scheme] | _FILTERS))
            raise InvalidRef(f"unknown option {name[:40]!r} in {scheme} ref; known are {known}")
        elif name in options:
            raise InvalidRef(f"option {name!r} is given twice in the ref")
        elif not value:
            raise InvalidRef(f"option {name!r} in the ref has no value")
        else:
            options[name] = value
    files = FileFilter(tuple(globs["include"]), tuple(globs["exclude"]))
    return tuple(sorted(options.items())), files


def _check_url(scheme: Scheme, body: str) -> None:
    if any(char.isspace() or ord(char) < ord(" ") for char in body):
        raise InvalidRef("URL has white space in it; write %20 for a space")
    try:
        parts = urlsplit(f"{scheme}://{body}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        why = "" if "@" in body else f": {error}"  # it may quote a password
        raise InvalidRef(f"URL is malformed{why}") from None
    if not host:
        raise InvalidRef("URL has no host")
    if parts.username is not None or parts.password is not None:
        raise InvalidRef(
            "URL carries credentials, which would end up in logs; put them in ~/.netrc"
        )
