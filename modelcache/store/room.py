"""Making room: quota with watermarks, free space, eviction, and the removal of left-overs."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import BlobId, Manifest, ModelId
from modelcache.errors import CorruptData, NotInStore, StoreFull
from modelcache.store import eviction, files, leases
from modelcache.store.eviction import Candidate
from modelcache.store.layout import SMALL_PREFIX
from modelcache.store.snapshots import TEMPORARY
from modelcache.store.store import Store

RATE_UNKNOWN_BYTES_S: Final = 100e6  # an ordinary origin, where no pull was measured


@dataclass(slots=True)
class Usage:
    """What the store takes, in bytes. unique_bytes: what removing a model would free."""

    blobs_bytes: int = 0
    blobs: int = 0
    partial_bytes: int = 0
    quota_bytes: int = 0
    free_bytes: int = 0
    filesystem_bytes: int = 0
    models: dict[ModelId, tuple[int, int]] = field(default_factory=dict)  # total, unique


@dataclass(slots=True)
class GarbageReport:
    """What a collection removed."""

    freed_bytes: int = 0
    blobs: int = 0
    partials: int = 0
    leases: int = 0
    evicted: list[ModelId] = field(default_factory=list)


def usage(store: Store) -> Usage:
    """Add up what is there."""
    found = Usage(quota_bytes=store.settings.quota_bytes)
    with suppress(FileNotFoundError):
        filesystem = os.statvfs(store.layout.root)
        found.free_bytes = filesystem.f_bavail * filesystem.f_frsize
        found.filesystem_bytes = filesystem.f_blocks * filesystem.f_frsize
    for _, size in _stored_blobs(store):
        found.blobs += 1
        found.blobs_bytes += size
    for path in store.layout.partial.glob("*/data"):
        with suppress(FileNotFoundError):
            found.partial_bytes += path.stat().st_blocks * 512
    manifests = _manifests(store)
    holders: dict[BlobId, int] = {}
    for manifest in manifests:
        for blob in manifest.blobs():
            holders[blob] = holders.get(blob, 0) + 1
    for manifest in manifests:
        sizes = {blob: file.size_bytes for blob, file in manifest.blobs().items()}
        unique = sum(size for blob, size in sizes.items() if holders[blob] == 1)
        found.models[manifest.model_id] = (sum(sizes.values()), unique)
    return found


def reserve(store: Store, need_bytes: int, *, keep: ModelId, now_s: float) -> list[ModelId]:
    """Make sure that `need_bytes` more fit, evicting models if they do not.

    keep: the model they are for. Returns what was evicted. Raises StoreFull, with the numbers and
    with nothing evicted in vain, when even eviction would not do.
    """
    settings = store.settings
    filesystem = os.statvfs(store.layout.root)
    free = filesystem.f_bavail * filesystem.f_frsize - settings.reserve_bytes
    lacking = max(0, need_bytes - free)
    if settings.quota_bytes:
        used = sum(size for _, size in _stored_blobs(store))
        if need_bytes > settings.quota_bytes:
            raise StoreFull(
                f"{_gb(need_bytes)} are needed, more than the quota of "
                f"{_gb(settings.quota_bytes)}; raise store.quota_bytes"
            )
        if used + need_bytes > settings.high_watermark * settings.quota_bytes:
            # Down to the low mark if there is that much to evict, but at least to the quota.
            must = used + need_bytes - settings.quota_bytes
            wish = used + need_bytes - int(settings.low_watermark * settings.quota_bytes)
            lacking = max(lacking, must, 0)
            return _evict(store, must=lacking, wish=max(lacking, wish), keep=keep, now_s=now_s)
    return _evict(store, must=lacking, wish=lacking, keep=keep, now_s=now_s) if lacking else []


def collect_garbage(store: Store, *, now_s: float, partial_older_than_s: float) -> GarbageReport:
    """Remove what nothing refers to: blobs without a model, stale partials, dead leases, trash.

    A partial, and a model that is still warming, goes when nobody holds it and it has not been
    touched for `partial_older_than_s`: until then the next pull resumes it.
    """
    report = GarbageReport()
    with store.mutex(), files.translated(store.layout.root):
        report.leases = leases.reap(store.layout)
        for model_id in store.model_ids():
            age_s = now_s - store.last_used_s(model_id)
            if (
                store.snapshot_path(model_id) is None
                and age_s > partial_older_than_s
                and not store.leases(model_id)
            ):
                report.freed_bytes += store.drop_model(model_id)
                report.evicted.append(model_id)
        wanted = store.referenced_blobs()
        for blob, size in list(_stored_blobs(store)):
            if blob not in wanted:
                store.drop_blob(blob)
                report.blobs += 1
                report.freed_bytes += size
        _collect_partials(store, wanted, report, now_s - partial_older_than_s)
        _collect_trees(store, now_s - partial_older_than_s)
    if store.settings.quota_bytes:
        used = sum(size for _, size in _stored_blobs(store))
        limit = int(store.settings.high_watermark * store.settings.quota_bytes)
        if used > limit:
            excess = used - int(store.settings.low_watermark * store.settings.quota_bytes)
            report.evicted += _evict(store, must=0, wish=excess, keep=ModelId(""), now_s=now_s)
    return report


def _collect_trees(store: Store, before_s: float) -> None:
    for tree in store.layout.snapshots.glob(f"{TEMPORARY}*"):
        if tree.stat().st_mtime < before_s:
            files.remove_tree(tree)
    store.empty_trash()


def _collect_partials(
    store: Store, wanted: set[BlobId], report: GarbageReport, before_s: float
) -> None:
    for folder in store.layout.partial.iterdir():
        if folder.name.startswith(SMALL_PREFIX):
            continue  # adopted or removed when a store is opened
        journal = folder / "journal"
        stale = not journal.exists() or journal.stat().st_mtime < before_s
        if BlobId(folder.name) in wanted and not stale:
            continue
        data = folder / "data"
        size = data.stat().st_blocks * 512 if data.exists() else 0
        store.drop_blob(BlobId(folder.name))
        if not folder.exists():
            report.partials += 1
            report.freed_bytes += size


def _evict(store: Store, *, must: int, wish: int, keep: ModelId, now_s: float) -> list[ModelId]:
    with store.mutex():
        leases.reap(store.layout)
        manifests = _manifests(store)
        kept = next((item for item in manifests if item.model_id == keep), None)
        candidates = [_candidate(store, item) for item in manifests if item.model_id != keep]
        protected = frozenset(kept.blobs()) if kept else frozenset[BlobId]()
        chosen = eviction.plan(candidates, need_bytes=wish, now_s=now_s, protected=protected)
        gain = _gain(candidates, chosen, protected)
        if gain < must:
            raise StoreFull(
                f"{_gb(must)} more room is needed and only {_gb(gain)} could be evicted; "
                "free space on the disk, unpin or remove a model, or raise store.quota_bytes"
            )
        for model_id in chosen:
            store.drop_model(model_id)
    return chosen


def _gain(candidates: list[Candidate], chosen: list[ModelId], protected: frozenset[BlobId]) -> int:
    shielded = set(protected)
    gone: dict[BlobId, int] = {}
    for candidate in candidates:
        if candidate.model_id in chosen:
            gone.update(candidate.blobs)
        else:
            shielded.update(candidate.blobs)
    return sum(size for blob, size in gone.items() if blob not in shielded)


def _candidate(store: Store, manifest: Manifest) -> Candidate:
    report = store.report(manifest.model_id) or {}
    seconds = float(report.get("transfer_s") or 0.0)
    fetched = float(report.get("fetched_bytes") or 0.0)
    return Candidate(
        model_id=manifest.model_id,
        blobs={
            blob: file.size_bytes
            for blob, file in manifest.blobs().items()
            if store.has_blob(blob, file.size_bytes)
        },
        last_used_s=store.last_used_s(manifest.model_id),
        rate_bytes_s=fetched / seconds if seconds > 0 and fetched else RATE_UNKNOWN_BYTES_S,
        leased=bool(store.leases(manifest.model_id)),
    )


def _manifests(store: Store) -> list[Manifest]:
    found = []
    for model_id in store.model_ids():
        with suppress(CorruptData, NotInStore):
            found.append(store.manifest(model_id))
    return found


def _stored_blobs(store: Store) -> list[tuple[BlobId, int]]:
    found: list[tuple[BlobId, int]] = []
    with suppress(FileNotFoundError):
        for folder in sorted(store.layout.blobs.iterdir()):
            for entry in os.scandir(folder):
                if not entry.name.endswith((".receipt", ".tmp")):
                    with suppress(FileNotFoundError):
                        found.append((BlobId(Path(entry.path).name), entry.stat().st_size))
    return found


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
