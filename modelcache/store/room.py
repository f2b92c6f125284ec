"""Making room: quota with watermarks, free space, eviction."""

from __future__ import annotations

import os
from typing import Final

from modelcache.domain.manifests import BlobId, Manifest, ModelId
from modelcache.errors import StoreFull
from modelcache.store import census, eviction, files, garbage, leases, partials
from modelcache.store.census import Usage, usage
from modelcache.store.eviction import Candidate
from modelcache.store.garbage import GarbageReport
from modelcache.store.store import Store

__all__ = ["GarbageReport", "Usage", "collect_garbage", "reserve", "usage", "would_evict"]

RATE_UNKNOWN_BYTES_S: Final = 100e6  # an ordinary origin, where no pull was measured


def reserve(store: Store, need_bytes: int, *, keep: ModelId, now_s: float) -> list[ModelId]:
    """Make sure that `need_bytes` more fit, evicting models if they do not.

    keep: the model they are for, whose pull has its lease already: that is what keeps the next one
    who asks from giving away the same room. Returns what was evicted. Raises StoreFull, with the
    numbers and with nothing evicted in vain, when even eviction would not do.
    """
    quota = store.settings.quota_bytes
    if quota and need_bytes > quota:
        raise StoreFull(
            f"{_gb(need_bytes)} are needed, more than the quota of {_gb(quota)}; "
            "raise store.quota_bytes"
        )
    store.empty_trash()  # what a killed process left in it still takes room on the disk
    try:
        with store.mutex(), files.translated(store.layout.root):
            must, wish = _lacking(store, need_bytes, keep=keep)
            if wish <= 0:
                return []
            leases.reap(store.layout)
            if orphans := garbage.drop_orphans(store):
                must, wish = _lacking(store, need_bytes, keep=keep, freed_bytes=orphans)
            return _evict(store, must, wish, keep=keep, now_s=now_s)
    finally:
        store.empty_trash()


def would_evict(store: Store, need_bytes: int, *, now_s: float) -> tuple[list[ModelId], int, int]:
    """What `reserve` would evict for so many bytes more: models, bytes freed, bytes that lack.

    Nothing is changed. Bytes still lack where even that is not enough.
    """
    with store.mutex(), files.translated(store.layout.root):
        must, wish = _lacking(store, need_bytes, keep=ModelId(""))
        chosen, gain = _chosen(store, wish, keep=ModelId(""), now_s=now_s)
    return chosen, gain, max(0, must - gain)


def collect_garbage(store: Store, *, now_s: float, partial_older_than_s: float) -> GarbageReport:
    """Remove what nothing refers to, then what is over the quota.

    A partial, and a model that is still warming, goes when nobody holds it and it has not been
    touched for `partial_older_than_s`: until then the next pull resumes it.
    """
    with store.mutex(), files.translated(store.layout.root):
        report = garbage.sweep(store, now_s=now_s, partial_older_than_s=partial_older_than_s)
        if store.settings.quota_bytes:
            used = census.committed(store, keep=ModelId("")).used_bytes
            _, wish = _over_quota(store, used)
            report.evicted += _evict(store, 0, wish, keep=ModelId(""), now_s=now_s)
    store.empty_trash()
    return report


def _lacking(
    store: Store, need_bytes: int, *, keep: ModelId, freed_bytes: int = 0
) -> tuple[int, int]:
    """Bytes that must be freed, and that had better be.

    freed_bytes: in the trash already, which the disk learns of only when it is emptied.
    """
    filesystem = os.statvfs(store.layout.root)
    free = filesystem.f_bavail * filesystem.f_frsize - store.settings.reserve_bytes + freed_bytes
    committed = census.committed(store, keep=keep)
    lacking = max(0, need_bytes + committed.unwritten_bytes - free)
    must, wish = _over_quota(store, committed.used_bytes + need_bytes)
    return max(lacking, must), max(lacking, wish)


def _over_quota(store: Store, used_bytes: int) -> tuple[int, int]:
    """Down to the low mark if the high one is passed, but at least to the quota itself."""
    settings = store.settings
    if not settings.quota_bytes or used_bytes <= settings.high_watermark * settings.quota_bytes:
        return 0, 0
    wish = used_bytes - int(settings.low_watermark * settings.quota_bytes)
    return max(0, used_bytes - settings.quota_bytes), wish


def _evict(store: Store, must: int, wish: int, *, keep: ModelId, now_s: float) -> list[ModelId]:
    """Evict up to `wish` bytes. Raises StoreFull, and evicts nothing, when `must` is out of reach.

    The caller has the mutex, and empties the trash.
    """
    chosen, gain = _chosen(store, wish, keep=keep, now_s=now_s)
    if gain < must:
        raise StoreFull(
            f"{_gb(must)} more room is needed and only {_gb(gain)} could be evicted; "
            "free space on the disk, unpin or remove a model, or raise store.quota_bytes"
        )
    for model_id in chosen:
        store.drop_model(model_id)
    return chosen


def _chosen(store: Store, wish: int, *, keep: ModelId, now_s: float) -> tuple[list[ModelId], int]:
    """Models whose eviction frees `wish` bytes, or as many as may go; and what they free."""
    manifests = census.manifests(store)
    under_way = {item.blob: item.size_bytes for item in partials.all_partials(store.layout)}
    candidates = [_candidate(store, item, under_way) for item in manifests if item.model_id != keep]
    protected = {blob for item in manifests if item.model_id == keep for blob in item.blobs()}
    chosen = eviction.plan(candidates, need_bytes=wish, now_s=now_s, protected=protected)
    return chosen, eviction.freed_bytes(candidates, chosen, protected)


def _candidate(store: Store, manifest: Manifest, under_way: dict[BlobId, int]) -> Candidate:
    report = store.report(manifest.model_id) or {}
    seconds = float(report.get("transfer_s") or 0.0)
    fetched = float(report.get("fetched_bytes") or 0.0)
    blobs: dict[BlobId, int] = {}
    for blob, file in manifest.blobs().items():
        here = file.size_bytes if store.has_blob(blob, file.size_bytes) else 0
        blobs[blob] = here + under_way.get(blob, 0)
    return Candidate(
        model_id=manifest.model_id,
        blobs=blobs,
        last_used_s=store.last_used_s(manifest.model_id),
        rate_bytes_s=fetched / seconds if seconds > 0 and fetched else RATE_UNKNOWN_BYTES_S,
        leased=bool(store.leases(manifest.model_id)),
    )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
