"""JSON indexes: how one URL names many files.

Two forms are read. nginx's `autoindex_format json`: a list of entries with `name`, `type`
(`file` or `directory`), `mtime` (an HTTP date) and `size`; directories are followed. And our own:

    {"files": [{"path": "a/b.safetensors", "size": 123, "sha256": "…", "url": "https://…"}]}

where only `path` must be there; `url` is relative to the index and defaults to `path`. Names come
from the network: those that the filter accepts are checked before anything is asked for them.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from modelcache.domain.paths import check_path
from modelcache.domain.refs import FileFilter
from modelcache.errors import SourceRefused, UnsafePath
from modelcache.sources.web.address import Address
from modelcache.sources.web.answers import is_http_date

# Links may make a tree endless. Both bounds are far beyond any model (the largest repositories
# have some thousand files in some dozen directories).
DIRECTORIES_MAX: Final = 4_096
FILES_MAX: Final = 200_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIZE_MAX: Final = 1 << 62  # beyond any filesystem


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an index; None is what the index does not say.

    modified: an HTTP date, as the server will send it in Last-Modified.
    """

    path: str
    address: Address
    size_bytes: int | None = None
    modified: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """An index as it was served, and from where after redirects."""

    address: Address
    body: bytes


def read_index(
    address: Address, accepted: FileFilter, get: Callable[[Address], Document]
) -> list[Entry]:
    """All accepted files that the index at `address` names, in its order. `get` fetches one.

    Raises SourceRefused for what is no index or beyond the bounds, UnsafePath.
    """
    document = get(address)
    content = _parse(document)
    if isinstance(content, dict):
        return _own(document.address, content, accepted)
    return _nginx(document.address, content, accepted, get)


def _nginx(
    root: Address,
    content: Any,  # noqa: ANN401 - JSON
    accepted: FileFilter,
    get: Callable[[Address], Document],
) -> list[Entry]:
    found: list[Entry] = []
    waiting: deque[tuple[Address, str]] = deque()
    asked = 1
    base, prefix = root, ""
    while True:
        for name, item in _listed(base, content):
            path = prefix + name
            if item.get("type") == "directory":
                if not accepted.prunes(path):
                    waiting.append((_inside(base, _component(name, path) + "/"), path + "/"))
            elif accepted.accepts(path):
                found.append(_nginx_file(base, _component(name, path), path, item))
        if len(found) > FILES_MAX or asked > DIRECTORIES_MAX:
            raise SourceRefused(
                f"index {root} names more than {FILES_MAX} files or {DIRECTORIES_MAX} directories; "
                "does a link lead back into it?"
            )
        if not waiting:
            return found
        address, prefix = waiting.popleft()
        document = get(address)
        asked += 1
        base, content = document.address, _parse(document)


def _listed(base: Address, content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401
    if not isinstance(content, list):
        raise _not_an_index(base)
    for item in content:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise _not_an_index(base)
        yield item["name"], item


def _nginx_file(base: Address, name: str, path: str, item: Mapping[str, Any]) -> Entry:
    modified = item.get("mtime")
    dated = isinstance(modified, str) and is_http_date(modified)
    size = item.get("size")
    if size is not None and not _is_size(size):
        raise _not_an_index(base)
    return Entry(path, _inside(base, name), size, str(modified) if dated else None)


def _component(name: str, path: str) -> str:
    """One name of a listing, which must not lead anywhere but into its directory."""
    check_path(path)
    if "/" in name:
        raise UnsafePath(f"file name {name[:200]!r} in a directory listing has a slash in it")
    return name


def _inside(base: Address, name: str) -> Address:
    directory = base.path.partition("?")[0].rpartition("/")[0]
    return Address(base.tls, base.host, base.port, f"{directory}/{quote(name)}")


def _own(base: Address, content: Mapping[str, Any], accepted: FileFilter) -> list[Entry]:
    items = content.get("files")
    if not isinstance(items, list):
        raise _not_an_index(base)
    if len(items) > FILES_MAX:
        raise SourceRefused(f"index {base} names more than {FILES_MAX} files")
    found = []
    for position, item in enumerate(items):
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str):
            raise _bad_entry(base, position, "it has no `path`")
        if accepted.accepts(path):
            found.append(_own_file(base, position, check_path(path), item))
    return found


def _own_file(base: Address, position: int, path: str, item: Mapping[str, Any]) -> Entry:
    size, sha256, url = item.get("size"), item.get("sha256"), item.get("url")
    if size is not None and not _is_size(size):
        raise _bad_entry(base, position, "`size` is not a number of bytes")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256.lower())):
        raise _bad_entry(base, position, "`sha256` is not 64 hex digits")
    if url is not None and not isinstance(url, str):
        raise _bad_entry(base, position, "`url` is not text")
    try:
        address = _inside(base, path) if url is None else base.join(url)
    except ValueError as error:
        raise _bad_entry(base, position, f"`url` cannot be used: {error}") from error
    if base.tls and not address.tls:
        raise _bad_entry(base, position, "`url` leads from https to http")
    return Entry(path, address, size, None, sha256.lower() if sha256 else None)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _SIZE_MAX


def _parse(document: Document) -> Any:  # noqa: ANN401 - JSON
    try:
        # Names that are not UTF-8 survive as surrogates, and are refused only if they are wanted.
        return json.loads(document.body.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise _not_an_index(document.address) from error


def _not_an_index(address: Address) -> SourceRefused:
    return SourceRefused(
        f"{address} is not a JSON index; name a single file, serve the directory with nginx's "
        '`autoindex_format json`, or an index of the form {"files": [{"path": ...}]}'
    )


def _bad_entry(address: Address, position: int, why: str) -> SourceRefused:
    return SourceRefused(f"index {address}, files[{position}]: {why}")
