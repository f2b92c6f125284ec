"""Collecting garbage: what crashes, removals and forgotten pulls leave, and nothing that lives.

Everything happens under the store mutex, so no pull begins in between. What lives is told by its
lock: a pull's lease, a blob's writer, a tree under construction, a staging folder. Temporary files
have none and are small; they go when they are older than any write takes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import BlobId, ModelId
from modelcache.store import census, files, leases, listings, locks, partials, staging, views
from modelcache.store import references as refs
from modelcache.store.layout import RECEIPT_SUFFIX
from modelcache.store.snapshots import TEMPORARY
from modelcache.store.store import ID_LENGTH, Store

TEMPORARY_KEEP_S: Final = 3600.0  # far beyond what writing and syncing a small file can take


@dataclass(slots=True)
class GarbageReport:
    """What a collection removed."""

    freed_bytes: int = 0
    blobs: int = 0
    partials: int = 0
    leases: int = 0
    evicted: list[ModelId] = field(default_factory=list)


def sweep(store: Store, *, now_s: float, partial_older_than_s: float) -> GarbageReport:
    """Remove what nothing refers to. The caller has the mutex, and empties the trash.

    A model without a snapshot that nobody holds goes, with its partials, when it was not touched
    for `partial_older_than_s`.
    """
    report = GarbageReport()
    report.leases = leases.reap(store.layout)
    for model_id in store.model_ids():
        cold = store.snapshot_path(model_id) is None and not store.leases(model_id)
        if cold and now_s - store.last_used_s(model_id) > partial_older_than_s:
            report.freed_bytes += store.drop_model(model_id)
            report.evicted.append(model_id)
    wanted = store.referenced_blobs()
    for blob in census.stored_blobs(store).keys() - wanted:
        report.freed_bytes += store.drop_blob(blob)
        report.blobs += 1
    _sweep_partials(store, wanted, report, now_s - partial_older_than_s)
    _sweep_models(store)
    _sweep_listings(store, wanted)
    staging.sweep(store.layout)
    _sweep_trees(store)
    views.sweep(store)
    _sweep_receipts(store)
    _sweep_temporaries(store, now_s - TEMPORARY_KEEP_S)
    return report


def drop_orphans(store: Store) -> int:
    """Remove blobs and partials that no model lists; returns the bytes. As `sweep` otherwise."""
    wanted = store.referenced_blobs()
    freed = sum(store.drop_blob(blob) for blob in census.stored_blobs(store).keys() - wanted)
    for partial in partials.all_partials(store.layout):
        if partial.blob not in wanted:
            freed += store.drop_partial(partial.blob)
    return freed


def _sweep_partials(
    store: Store, wanted: set[BlobId], report: GarbageReport, before_s: float
) -> None:
    for partial in partials.all_partials(store.layout):
        if partial.blob in wanted and partial.touched_s >= before_s:
            continue
        freed = store.drop_partial(partial.blob)
        if not store.layout.partial_blob(partial.blob).exists():
            report.partials += 1
            report.freed_bytes += freed


def _sweep_models(store: Store) -> None:
    """What is left of models that a crash cut in the middle of their beginning or removal."""
    known = set(store.model_ids())
    for model_id in sorted(known):
        if not store.layout.manifest(model_id).exists() and not store.leases(model_id):
            store.drop_model(model_id)
            known.discard(model_id)
    left = [path for path in store.layout.snapshots.iterdir() if _is_left_over(path, known)]
    left += [path for path in store.layout.leases.iterdir() if _is_left_over(path, known)]
    for path in left:
        # A pin protects what is there; of this model nothing is, or nobody can say what.
        if all(lease.kind == leases.PIN for lease in store.leases(ModelId(path.name))):
            store.trash(path)
    for model_id in refs.all_refs(store.layout).keys() - known:
        refs.forget(store.layout, model_id)


def _sweep_listings(store: Store, wanted: set[BlobId]) -> None:
    layers = {
        archive.layer.blob
        for manifest in census.manifests(store)
        for archive in (*manifest.archives, *manifest.unpacked_from)
    }
    listings.sweep(store.layout, layers, wanted)


def _is_left_over(path: Path, known: set[ModelId]) -> bool:
    return len(path.name) == ID_LENGTH and path.name not in known


def _sweep_trees(store: Store) -> None:
    for tree in list(store.layout.snapshots.glob(f"{TEMPORARY}*")):
        if tree.is_dir():
            with suppress(FileNotFoundError):  # its builder has just finished
                _trash_unlocked(store, tree)
        else:
            files.unlink(tree)  # a link that `relink`, which has the mutex too, did not come to use


def _trash_unlocked(store: Store, tree: Path) -> None:
    fd = files.open_directory(tree)
    try:
        if locks.try_lock(fd):
            store.trash(tree)
    finally:
        os.close(fd)


def _sweep_receipts(store: Store) -> None:
    """Receipts whose blob never came, unless it is about to."""
    for path in list(store.layout.blobs.glob(f"*/*{RECEIPT_SUFFIX}")):
        blob = BlobId(path.name.removesuffix(RECEIPT_SUFFIX))
        if store.layout.blob(blob).exists():
            continue
        fd = partials.take(store.layout, blob)
        if fd is None:
            continue
        try:
            if not store.layout.blob(blob).exists():
                files.unlink(path)
            if not (store.layout.partial_blob(blob) / partials.JOURNAL).exists():
                partials.remove(store.layout, blob)
        finally:
            os.close(fd)


def _sweep_temporaries(store: Store, before_s: float) -> None:
    layout = store.layout
    for pattern in ("", "blobs/*/", "models/*/", "layers/", "refs/", "leases/*/", "desired/"):
        for path in list(layout.root.glob(f"{pattern}.*{files.TEMPORARY_SUFFIX}")):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    files.unlink(path)
