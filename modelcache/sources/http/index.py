"""JSON indexes: how one URL names many files.

Two forms are read. nginx's `autoindex_format json`: a list of entries with `name`, `type`
(`file` or `directory`), `mtime` (an HTTP date) and `size`; directories are followed. And our own:

    {"files": [{"path": "a/b.safetensors", "size": 123, "sha256": "…", "url": "https://…"}]}

where only `path` must be there; `url` is relative to the index and defaults to `path`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from modelcache.errors import SourceRefused
from modelcache.sources.http.asking import shown

DEPTH_MAX: Final = 32
FILES_MAX: Final = 1_000_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an index. modified: an HTTP date, as nginx will send it as Last-Modified."""

    path: str
    url: str
    size_bytes: int | None = None
    modified: str | None = None
    sha256: str | None = None


def read_index(url: str, get: Callable[[str], bytes]) -> list[Entry]:
    """All files that the index at `url` names. `get` fetches a document. Raises SourceRefused."""
    entries: list[Entry] = []
    _read(url, "", get, entries, 0)
    return entries


def _read(
    url: str, prefix: str, get: Callable[[str], bytes], entries: list[Entry], depth: int
) -> None:
    if depth > DEPTH_MAX:
        raise SourceRefused(f"index {shown(url)} is nested deeper than {DEPTH_MAX} directories")
    try:
        document = json.loads(get(url))
        if isinstance(document, dict):
            entries.extend(_own_entry(url, item) for item in document["files"])
        else:
            for item in document:
                _nginx_entry(url, prefix, item, get, entries, depth)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SourceRefused(
            f"{shown(url)} is not a JSON index; name one file, or a directory served with "
            "nginx's `autoindex_format json`"
        ) from error
    if len(entries) > FILES_MAX:
        raise SourceRefused(f"index {shown(url)} names over {FILES_MAX} files")


def _nginx_entry(  # noqa: PLR0917
    url: str,
    prefix: str,
    item: dict[str, Any],
    get: Callable[[str], bytes],
    entries: list[Entry],
    depth: int,
) -> None:
    name = str(item["name"])
    target = urljoin(url, "./" + quote(name))
    if item["type"] == "directory":
        _read(f"{target}/", f"{prefix}{name}/", get, entries, depth + 1)
    elif item["type"] == "file":
        modified = item.get("mtime")
        entries.append(
            Entry(prefix + name, target, int(item["size"]), str(modified) if modified else None)
        )


def _own_entry(url: str, item: dict[str, Any]) -> Entry:
    path = str(item["path"])
    sha256 = item.get("sha256")
    if sha256 is not None and not _SHA256.fullmatch(str(sha256)):
        raise ValueError(f"sha256 of {path!r}")
    size = item.get("size")
    target = urljoin(url, str(item.get("url") or "./" + quote(path)))
    if urlsplit(target).scheme not in {"http", "https"}:
        raise ValueError(f"url of {path!r}")
    return Entry(path, target, None if size is None else int(size), None, sha256)
