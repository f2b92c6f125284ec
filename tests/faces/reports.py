"""Moments and reports to render."""

from __future__ import annotations

from typing import Any

from modelcache.transfer.report import (
    FileProgress,
    Phase,
    Progress,
    Report,
    SourceReport,
    WorkerTimes,
)


def moment(done_bytes: int = 0, *, phase: Phase = Phase.TRANSFERRING, **more: Any) -> Progress:
    """A pull of a thousand bytes."""
    plain: dict[str, Any] = {"elapsed_s": 0.0, "files_total": 3, "total_bytes": 1000}
    return Progress(phase, "s3://b/m", done_bytes=done_bytes, **{**plain, **more})


def under_way(count: int, name: str = "model-{:05d}.safetensors") -> tuple[FileProgress, ...]:
    """So many files, half done."""
    return tuple(FileProgress(name.format(n), 10 << 20, 5 << 20) for n in range(count))


def report(**more: Any) -> Report:
    """A finished pull of 4 GB in 4 s, with the origin vouching for all but 12 kB."""
    plain: dict[str, Any] = {
        "model_id": "ab" * 32,
        "wall_s": 4.0,
        "resolving_s": 0.5,
        "transfer_s": 3.0,
        "publishing_s": 0.5,
        "total_bytes": 4_000_012_000,
        "fetched_bytes": 4_000_012_000,
        "files": 5,
        "connections_peak": 8,
        "io": "direct",
        "workers": WorkerTimes(receiving_s=20.0, hashing_s=1.0, writing_s=2.0),
        "sources": {"s3://b/m": SourceReport(4_000_012_000, 300, 8, 1, {"throttled": 2})},
        "verified": {"none": 12_000, "crc64nvme": 4_000_000_000},
        "events": ["range 3 of a.bin: 503 from s3://b/m, again in 0.2 s"],
    }
    return Report(ref="s3://b/m", **{**plain, **more})
