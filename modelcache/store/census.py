"""Counting what a store holds: blobs, partials, and who needs which. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.domain.manifests import BlobId, Manifest, ModelId, is_blob_id
from modelcache.errors import CorruptData, NotInStore
from modelcache.store import files, leases, partials, staging
from modelcache.store.store import Store


@dataclass(slots=True)
class Usage:
    """What the store takes, in bytes. models: the sum of each, and what removing it would free."""

    blobs_bytes: int = 0
    blobs: int = 0
    partial_bytes: int = 0
    quota_bytes: int = 0
    free_bytes: int = 0
    filesystem_bytes: int = 0
    models: dict[ModelId, tuple[int, int]] = field(default_factory=dict)  # total, unique


@dataclass(frozen=True, slots=True)
class Committed:
    """Room that is taken, and room that is spoken for.

    used_bytes: blobs, partials and staged files at their full size, and what other pulls under way
    have yet to begin. unwritten_bytes: the part of it that the filesystem does not count as taken
    yet.
    """

    used_bytes: int
    unwritten_bytes: int


def usage(store: Store) -> Usage:
    """Add up what is there."""
    found = Usage(quota_bytes=store.settings.quota_bytes)
    root = store.layout.root
    filesystem = os.statvfs(next(path for path in (root, *root.parents) if path.exists()))
    found.free_bytes = filesystem.f_bavail * filesystem.f_frsize
    found.filesystem_bytes = filesystem.f_blocks * filesystem.f_frsize
    blobs = stored_blobs(store)
    found.blobs = len(blobs)
    found.blobs_bytes = sum(blobs.values())
    found.partial_bytes = sum(item.allocated_bytes for item in partials.all_partials(store.layout))
    found.partial_bytes += staging.staged_bytes(store.layout)[1]
    models = manifests(store)
    holders: dict[BlobId, int] = {}
    for manifest in models:
        for blob in manifest.blobs():
            holders[blob] = holders.get(blob, 0) + 1
    for manifest in models:
        sizes = {blob: file.size_bytes for blob, file in manifest.blobs().items()}
        unique = sum(size for blob, size in sizes.items() if holders[blob] == 1)
        found.models[manifest.model_id] = (sum(sizes.values()), unique)
    return found


def stored_blobs(store: Store) -> dict[BlobId, int]:
    """Every complete blob with its size, wanted or not."""
    found: dict[BlobId, int] = {}
    with files.translated(store.layout.blobs), suppress(FileNotFoundError):
        for folder in sorted(filter(Path.is_dir, store.layout.blobs.iterdir())):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_blob_id(entry.name):
                        with suppress(FileNotFoundError):
                            found[BlobId(entry.name)] = entry.stat(follow_symlinks=False).st_size
    return found


def manifests(store: Store, models: Iterable[ModelId] | None = None) -> list[Manifest]:
    """The manifests that can be read, of these models or of all."""
    found = []
    for model_id in store.model_ids() if models is None else models:
        with suppress(CorruptData, NotInStore):
            found.append(store.manifest(model_id))
    return found


def committed(store: Store, *, keep: ModelId) -> Committed:
    """What is taken and spoken for, but for what the model `keep` has yet to begin."""
    blobs = stored_blobs(store)
    under_way = {item.blob: item for item in partials.all_partials(store.layout)}
    used = sum(blobs.values()) + sum(item.size_bytes for item in under_way.values())
    unwritten = sum(item.size_bytes - item.allocated_bytes for item in under_way.values())
    staged, allocated = staging.staged_bytes(store.layout)
    used += staged
    unwritten += staged - allocated
    promised: dict[BlobId, int] = {}
    others = [item for item in store.model_ids() if item != keep and _is_pulled(store, item)]
    for manifest in manifests(store, others):
        promised.update((blob, file.size_bytes) for blob, file in manifest.blobs().items())
    mine = {blob for item in manifests(store, [keep]) for blob in item.blobs()} if promised else ()
    to_come = sum(
        size
        for blob, size in promised.items()
        if blob not in blobs and blob not in under_way and blob not in mine
    )
    return Committed(used + to_come, unwritten + to_come)


def _is_pulled(store: Store, model_id: ModelId) -> bool:
    return any(item.kind == leases.PULL for item in store.leases(model_id))
