"""What a pull tells while it runs (Progress) and when it is over (Report).

The report is kept with the model as JSON, and is what `modelcache explain` prints. Times of the
phases of a chunk (waiting, connecting, first byte, receiving, hashing, writing) are summed over
all workers, so with eight connections they add up to eight times the wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a pull or a push is."""

    RESOLVING = "resolving"
    WAITING = "waiting"  # for another process that is fetching the same blobs
    TRANSFERRING = "transferring"
    PUSHING = "pushing"  # the other direction
    PUBLISHING = "publishing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class FileProgress:
    """One file under way."""

    path: str
    size_bytes: int
    done_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a pull. Byte counts are of distinct blobs.

    present_bytes: what was on the node before. done_bytes: that and what came since.
    rate_bytes_s: over the last few seconds. active: files under way, largest first, at most 64.
    sources: bytes received from each so far.
    """

    phase: Phase
    ref: str
    elapsed_s: float
    files_total: int = 0
    files_done: int = 0
    total_bytes: int = 0
    present_bytes: int = 0
    done_bytes: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    connections: int = 0
    retries: int = 0
    hedges: int = 0
    active: tuple[FileProgress, ...] = ()
    sources: Mapping[str, int] = field(default_factory=dict)


ProgressCallback = Callable[[Progress], None]


@dataclass(slots=True)
class WorkerTimes:
    """Seconds that workers spent, by what they did."""

    waiting_s: float = 0.0  # for a task, a buffer or the bandwidth limit
    signing_s: float = 0.0
    connecting_s: float = 0.0
    first_byte_s: float = 0.0
    receiving_s: float = 0.0
    hashing_s: float = 0.0
    writing_s: float = 0.0
    verifying_s: float = 0.0  # publishing: reading back, comparing, making durable

    def add(self, other: WorkerTimes) -> None:
        """Add another worker's seconds."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True)
class SourceReport:
    """What one source contributed. `failures` counts failed attempts by error code."""

    received_bytes: int = 0
    requests: int = 0
    connections: int = 0
    hedges: int = 0
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """Where the time of one pull went, and where the bytes came from."""

    ref: str
    model_id: str = ""
    started_at_s: float = 0.0  # seconds since the epoch, for people
    wall_s: float = 0.0
    resolving_s: float = 0.0
    lock_wait_s: float = 0.0
    transfer_s: float = 0.0
    publishing_s: float = 0.0
    total_bytes: int = 0
    present_bytes: int = 0
    fetched_bytes: int = 0
    unpacked_bytes: int = 0  # stored out of archives
    unpacking_s: float = 0.0  # decompressing, hashing and writing that, by all threads
    files: int = 0
    connections_peak: int = 0
    io: str = ""
    cpu_s: float = 0.0
    workers: WorkerTimes = field(default_factory=WorkerTimes)
    sources: dict[str, SourceReport] = field(default_factory=dict)
    verified: dict[str, int] = field(default_factory=dict)  # bytes by how the origin vouched
    events: list[str] = field(default_factory=list)  # retries and hedges, in words; bounded
    notes: list[str] = field(
        default_factory=list
    )  # what the source tells, such as what it left out

    def to_json(self) -> dict[str, Any]:
        """Plain values for the stored form and `--json`."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["workers"] = {
            item.name: getattr(self.workers, item.name) for item in fields(self.workers)
        }
        plain["sources"] = {
            name: {item.name: getattr(source, item.name) for item in fields(source)}
            for name, source in self.sources.items()
        }
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Report:
        """Inverse of `to_json`; fields of other versions are dropped."""
        known = {item.name for item in fields(cls)}
        report = cls(**{name: value for name, value in plain.items() if name in known})
        report.workers = WorkerTimes(**plain.get("workers", {}))
        report.sources = {
            name: SourceReport(**source) for name, source in plain.get("sources", {}).items()
        }
        return report
