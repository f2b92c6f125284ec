"""One attempt to make a wanted model warm: a pull in a thread of its own, followed and accounted.

Whatever a pull raises ends here: the node goes on, and the model is tried again, or not.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Final

from modelcache.agent.board import Board
from modelcache.agent.control import PullControl
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.foresight import Foresight
from modelcache.agent.progressing import (
    Attempt,
    Stop,
    Wanted,
    is_passing,
    phase_of,
    retry_delay_s,
    watch_movement,
)
from modelcache.agent.snapshot import Snapshot
from modelcache.domain.manifests import ModelId
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import ModelPhase, Trouble
from modelcache.errors import (
    Cancelled,
    CorruptData,
    ModelcacheError,
    NotInStore,
    SourceUnavailable,
)
from modelcache.planner.arbiter import Ended, Moving, Started, TransferId, Waiting
from modelcache.store import Store
from modelcache.store.leases import PULL, Lease
from modelcache.transfer.report import Phase, Progress

LEASE_KIND: Final = "agent"
PROGRESS_EVERY_S: Final = 1.0  # at most one progress event a model and second
BUG_LINES: Final = 8  # of a traceback in an event: the innermost are what matters

Learned = Callable[[Wanted, ModelId], None]
"""Called without the board's lock when it is known which model a ref means."""


class Attempting:
    """Begins attempts and takes in how they end. Thread-safe."""

    def __init__(
        self, board: Board, engine: Engine, node: str, learned: Learned, foresight: Foresight
    ) -> None:
        """node: this node's name, which makes its retries differ from other nodes'."""
        self._foresight = foresight
        self._board = board
        self._engine = engine
        self._node = node
        self._learned = learned

    def begin(self, wanted: Wanted) -> None:
        """Start an attempt. The caller holds the board's lock."""
        attempt = Attempt(threading.Event(), monotonic(), refresh=wanted.refresh)
        attempt.thread = threading.Thread(
            target=self._run,
            args=(wanted, attempt),
            name=f"modelcache-pull-{wanted.wanted_id}",
            daemon=True,  # a second signal ends the process whatever a pull is waiting for
        )
        wanted.attempt = attempt
        wanted.control = PullControl(priority=wanted.desired.priority)
        wanted.phase = ModelPhase.RESOLVING
        wanted.progress = None
        wanted.refresh = False
        self._board.post(Started(TransferId(wanted.wanted_id), wanted.desired.priority))
        attempt.thread.start()

    def hold(self, wanted: Wanted, model_id: ModelId) -> bool:
        """Protect a model from eviction while it is wanted; False if it is not in the store."""
        if wanted.lease is not None and wanted.desired.model_id == model_id:
            return True
        try:
            lease = self._engine.store.hold(model_id, LEASE_KIND, wanted.desired.ref.redacted())
        except NotInStore:
            return False
        before = self._take_lease(wanted, lease)
        if before is not None:
            before.release()
        self._learned(wanted, model_id)
        return True

    def let_go(self, wanted: Wanted) -> None:
        """End the protection. Idempotent."""
        lease = self._take_lease(wanted, None)
        if lease is not None:
            lease.release()

    def _take_lease(self, wanted: Wanted, lease: Lease | None) -> Lease | None:
        with self._board.changed:
            before, wanted.lease = wanted.lease, lease
        return before

    def _run(self, wanted: Wanted, attempt: Attempt) -> None:
        self._board.events.add(
            EventKind.STARTED,
            wanted.wanted_id,
            ref=wanted.desired.ref.redacted(),
            attempt=wanted.attempts + 1,
        )
        desired = wanted.desired
        tenants_only = all(want.tenant for want in desired.wants)
        try:
            snapshot = self._engine.pull(
                desired.ref,
                settings=self._engine.reach.settings_for(desired.ref, tenants_only=tenants_only),
                refresh=attempt.refresh,
                progress=lambda progress: self._follow(wanted, attempt, progress),
                cancel=attempt.cancel,
                control=wanted.control,
            )
            self._keep(wanted, attempt, snapshot)
        except Cancelled as error:
            self._stopped(wanted, attempt, error)
        except ModelcacheError as error:
            self._failed(wanted, attempt, error, Trouble(error.code, error.message))
        except Exception as error:  # noqa: BLE001 - the supervisor of a pull: a bug ends one pull
            trouble = Trouble("bug", f"this is a bug: {type(error).__name__}: {error}")
            lines = traceback.format_exception(error)[-BUG_LINES:]
            self._failed(wanted, attempt, ModelcacheError(trouble.message), trouble, lines)

    # While it runs

    def _follow(self, wanted: Wanted, attempt: Attempt, progress: Progress) -> None:
        """Take in one moment of it; in the pull's own thread."""
        board, now_s = self._board, monotonic()
        with board.changed:
            before, wanted.progress = wanted.progress, progress
            if progress.sources:
                wanted.sources = dict(progress.sources)
            phase = phase_of(progress)
            if phase is not wanted.phase:
                wanted.phase = phase
                board.changed.notify_all()
            self._account(before, progress)
            moves = watch_movement(
                attempt, progress, before, now_s=now_s, paused=wanted.control.paused
            )
            if moves is not attempt.moving:
                attempt.moving = moves
                transfer = TransferId(wanted.wanted_id)
                board.post(Moving(transfer) if moves else Waiting(transfer))
            tells = progress.total_bytes > 0 and now_s - attempt.told_s >= PROGRESS_EVERY_S
            if tells:
                attempt.told_s = now_s
        if progress.phase is Phase.TRANSFERRING and not wanted.control.paused:
            board.measuring.moved(wanted.wanted_id, progress.sources, now_s)
        else:
            board.measuring.rests(wanted.wanted_id, now_s)
        began = before is None or before.phase is Phase.RESOLVING
        if began and progress.phase is not Phase.RESOLVING:
            self._resolved(wanted, progress)
        if tells:
            board.events.add(EventKind.PROGRESS, wanted.wanted_id, **_moment(progress))

    def _account(self, before: Progress | None, now: Progress) -> None:
        """Add to the sums what has come since the last moment."""
        known = before is not None and before.total_bytes == now.total_bytes
        start = before.done_bytes if before is not None and known else now.present_bytes
        more = max(0, now.done_bytes - start)
        retries = max(0, now.retries - (before.retries if before is not None else 0))
        if more or retries:
            self._board.tally.stored(more, retries)

    def _resolved(self, wanted: Wanted, progress: Progress) -> None:
        """The ref's meaning is known: from now on nobody may evict what comes."""
        model_id = self.being_pulled(wanted.desired.ref)
        if model_id is not None:
            self.hold(wanted, model_id)
            if not wanted.path and progress.done_bytes < progress.total_bytes:
                self._foresight.resolved(wanted.desired.ref, model_id, progress.total_bytes)
        self._board.events.add(
            EventKind.RESOLVED,
            wanted.wanted_id,
            ref=wanted.desired.ref.redacted(),
            model_id=model_id or "",
            total_bytes=progress.total_bytes,
            files=progress.files_total,
        )

    def being_pulled(self, ref: Ref) -> ModelId | None:
        """Which model a pull of ours has begun, by the lease that it holds."""
        store, me, note = self._engine.store, os.getpid(), ref.redacted()
        for model_id in store.model_ids():
            for lease in store.leases(model_id):
                if (lease.kind, lease.pid, lease.note) == (PULL, me, note):
                    return model_id
        return None

    # How it ends

    def _keep(self, wanted: Wanted, attempt: Attempt, snapshot: Snapshot) -> None:
        held = self.hold(wanted, snapshot.model_id)
        if not held or self._engine.store.snapshot_path(snapshot.model_id) is None:
            gone = SourceUnavailable(f"model {snapshot.model_id[:12]} was removed as it came")
            self._failed(wanted, attempt, gone, Trouble(gone.code, gone.message))
            return
        report = snapshot.report
        size_bytes, files = measure(self._engine.store, snapshot.model_id)
        with self._board.changed:
            first = not wanted.path
            if report is not None and report.sources:
                wanted.sources = {k: v.received_bytes for k, v in report.sources.items()}
            wanted.size_bytes, wanted.files = size_bytes, files
            wanted.path = str(snapshot.path)
            wanted.trouble, wanted.attempts = None, 0
            wanted.warm_s = monotonic()
        self._end(wanted, attempt, "warm", wanted.settle_warm)
        if first:
            began_s = wanted.began_s
            self._foresight.warm(wanted.desired.ref, snapshot.model_id, began_s, report)
        if report is not None and snapshot.fetched_bytes:
            self._board.tally.received(wanted.sources)
            self._board.measuring.wrote(
                snapshot.fetched_bytes, report.workers.writing_s, report.connections_peak
            )
        self._board.events.add(
            EventKind.WARM,
            wanted.wanted_id,
            ref=wanted.desired.ref.redacted(),
            model_id=snapshot.model_id,
            fetched_bytes=snapshot.fetched_bytes,
            seconds=round(monotonic() - attempt.started_s, 3),
        )

    def _stopped(self, wanted: Wanted, attempt: Attempt, error: Cancelled) -> None:
        if attempt.stopped is None:  # nobody of ours: it is as good as a failure
            self._failed(wanted, attempt, error, Trouble(error.code, error.message))
            return

        def again() -> None:
            wanted.phase = ModelPhase.WARM if wanted.path else ModelPhase.QUEUED
            wanted.refresh = wanted.refresh or attempt.refresh
            wanted.due_s = monotonic()

        self._end(wanted, attempt, "stopped", again)
        if attempt.stopped is Stop.PREEMPTED:
            self._board.events.add(EventKind.PREEMPTED, wanted.wanted_id)

    def _failed(
        self,
        wanted: Wanted,
        attempt: Attempt,
        error: ModelcacheError,
        trouble: Trouble,
        lines: list[str] | None = None,
    ) -> None:
        """Try again, soon where time heals it. What is warm stays warm, whatever became of it."""
        with self._board.changed:
            wanted.attempts += 1
            attempts = wanted.attempts
        delay_s = retry_delay_s(error, attempts, f"{self._node}/{wanted.wanted_id}")
        passing = is_passing(error, attempts)

        def settle() -> None:
            wanted.trouble = trouble
            wanted.refresh = wanted.refresh or attempt.refresh
            wanted.due_s = monotonic() + delay_s
            if wanted.path:
                wanted.phase = ModelPhase.WARM
            else:
                wanted.phase = ModelPhase.QUEUED if passing else ModelPhase.FAILED

        self._end(wanted, attempt, "retrying" if passing else "failed", settle)
        self._board.events.add(
            EventKind.RETRYING if passing else EventKind.FAILED,
            wanted.wanted_id,
            ref=wanted.desired.ref.redacted(),
            code=trouble.code,
            message=trouble.message,
            attempts=attempts,
            retry_in_s=round(delay_s, 1),
            **({"traceback": lines} if lines else {}),
        )

    def _end(
        self, wanted: Wanted, attempt: Attempt, result: str, settle: Callable[[], None]
    ) -> None:
        """The attempt is over; one nobody wants any more is forgotten."""
        self._board.tally.ended(result, monotonic() - attempt.started_s)
        self._board.measuring.rests(wanted.wanted_id, monotonic())
        with self._board.changed:
            wanted.attempt = None
            settle()
            forgotten = not wanted.desired.wants
            if forgotten:
                self._board.wanted.pop(wanted.wanted_id, None)
            self._board.post(Ended(TransferId(wanted.wanted_id)))
        if forgotten:
            self.let_go(wanted)


def measure(store: Store, model_id: ModelId) -> tuple[int, int]:
    """Bytes and number of a model's distinct blobs; nothing of one that cannot be read."""
    try:
        blobs = store.manifest(model_id).blobs()
    except (CorruptData, NotInStore):
        return 0, 0
    return sum(file.size_bytes for file in blobs.values()), len(blobs)


def _moment(progress: Progress) -> dict[str, object]:
    return {
        "phase": progress.phase.value,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "rate_bytes_s": round(progress.rate_bytes_s),
        "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
        "connections": progress.connections,
    }
