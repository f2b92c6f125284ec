"""One wanted model while the agent works on it: its state, its status, and when it is tried again.

Who changes a `Wanted` holds the node's lock. Times are monotonic seconds unless they say otherwise.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final

from modelcache.agent.control import PullControl
from modelcache.agent.desired import DesiredModel
from modelcache.domain.wanted import ModelPhase, Trouble, WantedStatus
from modelcache.errors import (
    BlobBusy,
    CorruptData,
    ModelcacheError,
    OriginChanged,
    SourceUnavailable,
)
from modelcache.store.leases import Lease
from modelcache.transfer.report import Phase, Progress

RETRY_FIRST_S: Final = 1.0
RETRY_LAST_S: Final = 300.0  # an origin that is back is found again within five minutes
REFUSED_RETRY_S: Final = 180.0  # somebody has to change something, and may do so any time
CORRUPT_ATTEMPTS_MAX: Final = 3  # what stays wrong is wrong at its origin
STALLED_S: Final = 10.0  # without a byte a transfer holds nobody back any more
_DIGEST_VALUES: Final = 1 << 32

_PHASES: Final = {
    Phase.RESOLVING: ModelPhase.RESOLVING,
    Phase.WAITING: ModelPhase.TRANSFERRING,
    Phase.TRANSFERRING: ModelPhase.TRANSFERRING,
    Phase.PUSHING: ModelPhase.TRANSFERRING,
    Phase.PUBLISHING: ModelPhase.PUBLISHING,
    Phase.DONE: ModelPhase.PUBLISHING,
}


class Stop(StrEnum):
    """Why an attempt was told to stop."""

    PREEMPTED = "preempted"  # something more urgent needs its place
    RELEASED = "released"  # nobody wants the model any more
    LEAVING = "leaving"  # the agent drains or ends


@dataclass(slots=True, eq=False)
class Attempt:
    """One pull under way. moving: what the arbiter was last told; moved_s: the last byte came.

    refresh: the ref is resolved anew whatever is known of it.
    """

    cancel: threading.Event
    started_s: float
    refresh: bool = False
    thread: threading.Thread | None = None
    stopped: Stop | None = None
    moving: bool = False
    moved_s: float = 0.0
    told_s: float = 0.0

    def stop(self, why: Stop) -> None:
        """Have it end soon; the first reason counts."""
        self.stopped = self.stopped or why
        self.cancel.set()


@dataclass(slots=True, eq=False)
class Wanted:
    """See the module. path: of the snapshot that is warm now, also while a newer one comes.

    began_s: since when it is wanted and not warm, seconds since the epoch.
    """

    desired: DesiredModel
    began_s: float = 0.0
    control: PullControl = field(default_factory=PullControl)  # of the attempt under way
    phase: ModelPhase = ModelPhase.QUEUED
    due_s: float | None = 0.0
    attempt: Attempt | None = None
    attempts: int = 0
    trouble: Trouble | None = None
    progress: Progress | None = None
    sources: dict[str, int] = field(default_factory=dict)
    lease: Lease | None = None
    path: str = ""
    size_bytes: int = 0
    files: int = 0
    refresh: bool = False
    warm_s: float = 0.0

    @property
    def wanted_id(self) -> str:
        """Its name in the API."""
        return self.desired.wanted_id

    def waits(self, now_s: float) -> bool:
        """Whether an attempt should begin."""
        due = self.due_s is not None and self.due_s <= now_s
        return due and self.attempt is None and bool(self.desired.wants)

    def settle_warm(self) -> None:
        """It is here; the next attempt comes when somebody asks, as may have happened meanwhile."""
        self.phase = ModelPhase.WARM
        self.due_s = 0.0 if self.refresh else None
        self.progress = None


def status_of(wanted: Wanted, now_s: float) -> WantedStatus:
    """One moment of it."""
    progress = wanted.progress
    retry_s = None
    if wanted.attempt is None and wanted.due_s is not None and wanted.trouble is not None:
        retry_s = round(max(0.0, wanted.due_s - now_s), 1)
    desired = wanted.desired
    return WantedStatus(
        wanted_id=wanted.wanted_id,
        ref=desired.ref.redacted(),
        phase=_shown_phase(wanted),
        priority=desired.priority,
        model_id=desired.model_id,
        total_bytes=progress.total_bytes if progress else wanted.size_bytes,
        done_bytes=progress.done_bytes if progress else _known_done(wanted),
        files_total=progress.files_total if progress else wanted.files,
        files_done=progress.files_done if progress else _known_files(wanted),
        rate_bytes_s=progress.rate_bytes_s if progress and wanted.attempt else 0.0,
        eta_s=progress.eta_s if progress and wanted.attempt else None,
        connections=progress.connections if progress and wanted.attempt else 0,
        retries=progress.retries if progress else 0,
        sources=dict(wanted.sources),
        attempts=wanted.attempts,
        retry_in_s=retry_s,
        trouble=wanted.trouble,
        path=wanted.path,
        wants=desired.wants,
    )


def phase_of(progress: Progress) -> ModelPhase:
    """The phase that a pull's progress means."""
    return _PHASES[progress.phase]


def is_passing(error: ModelcacheError, attempts: int) -> bool:
    """Whether time alone may heal an error: it is tried again soon, and nobody is called."""
    if isinstance(error, CorruptData):
        return attempts < CORRUPT_ATTEMPTS_MAX
    return isinstance(error, SourceUnavailable | BlobBusy | OriginChanged)


def retry_delay_s(error: ModelcacheError, attempts: int, seed: str) -> float:
    """How long to leave it alone after so many failures in a row.

    The jitter comes from the seed, so that a thousand nodes that failed together do not come back
    together, and the same failure is tried again at the same moment in every run of a test.
    """
    jitter = 0.75 + 0.5 * int(sha256(f"{seed}:{attempts}".encode()).hexdigest()[:8], 16) / (
        _DIGEST_VALUES
    )
    if not is_passing(error, attempts):
        return REFUSED_RETRY_S * jitter
    delay_s = min(RETRY_LAST_S, RETRY_FIRST_S * 2.0 ** min(attempts - 1, 16)) * jitter
    asked_s = error.retry_after_s if isinstance(error, SourceUnavailable) else None
    return max(delay_s, min(asked_s or 0.0, RETRY_LAST_S))


def watch_movement(
    attempt: Attempt, progress: Progress, before: Progress | None, *, now_s: float, paused: bool
) -> bool:
    """Whether a transfer moves bytes, so that less urgent ones should wait for it."""
    if progress.phase is not Phase.TRANSFERRING:
        attempt.moved_s = now_s
        return False
    known = before.done_bytes if before and before.phase is Phase.TRANSFERRING else None
    if paused or progress.done_bytes != known:
        attempt.moved_s = now_s
    return now_s - attempt.moved_s < STALLED_S


def _shown_phase(wanted: Wanted) -> ModelPhase:
    held = wanted.control.paused and wanted.attempt is not None
    return ModelPhase.PAUSED if held and wanted.phase is ModelPhase.TRANSFERRING else wanted.phase


def _known_done(wanted: Wanted) -> int:
    return wanted.size_bytes if wanted.phase is ModelPhase.WARM else 0


def _known_files(wanted: Wanted) -> int:
    return wanted.files if wanted.phase is ModelPhase.WARM else 0
