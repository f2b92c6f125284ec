"""What unpacking has found in layers: one small file each, named by the layer and the root.

A listing is written only when the layer's digest held, so it is as true as the digest. It saves
fetching a layer only to learn what is in it. One that is lost or unreadable is as if never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from modelcache.domain.layers import Entry, EntryKind, Listing, is_member_blob
from modelcache.domain.manifests import Archive, BlobId, canonical_json
from modelcache.store import files, locks
from modelcache.store.layout import LISTING_SUFFIX, LOCK_SUFFIX, Layout

FORMAT: Final = 1


def save(layout: Layout, archive: Archive, listing: Listing) -> None:
    """Write down what the archive holds. Durable on return."""
    path = layout.listing(archive)
    plain = {
        "entries": [_plain(entry) for entry in listing.entries],
        "format": FORMAT,
        "layer": archive.layer.blob,
        "opaque": listing.opaque,
        "root": archive.root,
        "whiteouts": listing.whiteouts,
    }
    with files.translated(path):
        files.atomic_write(path, canonical_json(plain))


def load(layout: Layout, archive: Archive) -> Listing | None:
    """What the archive holds below its root, if that is known."""
    raw = _read(layout.listing(archive))
    if raw is None or (raw["layer"], raw["root"]) != (archive.layer.blob, archive.root):
        return None
    try:
        return Listing(
            tuple(_entry(item) for item in raw["entries"]),
            tuple(map(_text, raw["whiteouts"])),
            tuple(map(_text, raw["opaque"])),
        )
    except (KeyError, TypeError, ValueError):
        return None


def sweep(layout: Layout, layers: Collection[BlobId], blobs: Collection[BlobId]) -> None:
    """Remove listings of other layers that hold none of these blobs, and locks nobody holds.

    The caller has the store mutex. layers: those that some model names. blobs: those that some
    model lists.
    """
    for path in list(layout.layers.glob(f"[!.]*{LISTING_SUFFIX}")):
        raw = _read(path)
        if raw is None or (raw["layer"] not in layers and not any(_wanted(raw, blobs))):
            files.unlink(path)
    for path in list(layout.layers.glob(f"*{LOCK_SUFFIX}")):
        fd = locks.lock_file(path, wait=False)
        if fd is not None:
            files.unlink(path)
            os.close(fd)


def try_lock(layout: Layout, layer: BlobId) -> int | None:
    """Become the one who unpacks a layer; None when somebody else is. Release with `unlock`."""
    with files.translated(layout.layers):
        return locks.lock_file(layout.layer_lock(layer), wait=False)


def unlock(layout: Layout, layer: BlobId, fd: int) -> None:
    """Let the next one have the layer."""
    with suppress(OSError):  # a lock that stays is collected
        files.unlink(layout.layer_lock(layer))
    os.close(fd)


def _wanted(raw: dict[str, Any], blobs: Collection[BlobId]) -> Iterator[bool]:
    with suppress(AttributeError, KeyError, TypeError):
        for entry in raw["entries"]:
            if entry.get("blob") in blobs:
                yield True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        known = raw["format"] == FORMAT and {"entries", "layer", "root"} <= raw.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return raw if known else None


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": entry.kind.value, "path": entry.path}
    if entry.blob is not None:
        plain["blob"] = entry.blob
        plain["size"] = entry.size_bytes
    if entry.target:
        plain["target"] = entry.target
    return plain


def _entry(raw: dict[str, Any]) -> Entry:
    """Raises KeyError, TypeError or ValueError for what `_plain` has not written."""
    kind = EntryKind(raw["kind"])
    target = _text(raw.get("target", ""))
    if kind is not EntryKind.FILE:
        return Entry(_text(raw["path"]), kind, target=target)
    size, blob = raw["size"], BlobId(_text(raw["blob"]))
    if type(size) is not int or size < 0 or not is_member_blob(blob):
        raise ValueError("not a member")
    return Entry(_text(raw["path"]), kind, size, blob, target)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value
