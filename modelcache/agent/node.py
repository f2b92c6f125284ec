"""What a node has and is to have: the long-running use cases over an engine.

Models are *wanted*; the node brings them, the most urgent first, keeps them while anybody wants
them, and goes on after a restart with what it was doing. One thread decides who has its turn; each
pull runs in a thread of its own. It must not know who wants what, nor what a cluster is.

Locks, in the order in which they are taken: `_filing` serialises changes of what is wanted, with
their files; the board's lock is held for moments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final

from modelcache.agent.attempting import Attempting
from modelcache.agent.board import Board
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.deciding import TICK_S, Deciding
from modelcache.agent.desired import DESIRED_MAX, DesiredFolder, DesiredModel
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind, EventLog
from modelcache.agent.foresight import Foresight
from modelcache.agent.measuring import Measuring
from modelcache.agent.progressing import Stop, Wanted, status_of
from modelcache.agent.quotas import Quotas
from modelcache.agent.reviewing import Review
from modelcache.agent.tally import Tally
from modelcache.config import Settings, parse_priority_limits, parse_quotas
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import Priority
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import (
    LEASE_DEFAULT,
    ModelPhase,
    Want,
    WantedStatus,
    check_want,
    wanted_id,
)
from modelcache.errors import Draining, NotInStore, UsageError
from modelcache.planner.arbiter import Arbiter, PriorityChanged, TransferId

ASKED_AGAIN_S: Final = 2.0  # a failed model that is asked for again is tried at once, but not twice
STOP_S: Final = 30.0  # a pull that was told to stop has let go of its origin by then


class Node:
    """See the module. Thread-safe."""

    def __init__(self, settings: Settings, engine: Engine, *, name: str) -> None:
        """name: this node's among others. Nothing is begun before `start`."""
        self.name = name
        self.reach = engine.reach
        """Where pods may lead this node."""
        self._engine = engine
        self._board = Board()
        self._folder = DesiredFolder(engine.store)
        self.foresight = Foresight(
            self._board,
            engine,
            settings.forecast,
            name=name,
            pulls_max=settings.agent.pulls_max,
        )
        self._attempting = Attempting(self._board, engine, name, self._learned, self.foresight)
        self._review = Review(
            self._board, engine, self._attempting, refresh_s=settings.agent.refresh_s
        )
        self._deciding = Deciding(
            self._board,
            self._attempting,
            Arbiter(parse_priority_limits(settings.agent.priority_limits)),
            pulls_max=settings.agent.pulls_max,
            chores=(self._expire, self._hold_to_quotas, self._review.look),
        )
        self._quotas = Quotas(parse_quotas(settings.access.quotas))
        self._filing = threading.RLock()
        self.loaded = False
        """Whether what was wanted before the restart has been looked at."""

    @property
    def events(self) -> EventLog:
        """What happens here."""
        return self._board.events

    @property
    def tally(self) -> Tally:
        """Sums for metrics."""
        return self._board.tally

    @property
    def measuring(self) -> Measuring:
        """How fast its sources and its disk are."""
        return self._board.measuring

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._board.draining

    @property
    def alive(self) -> bool:
        """False when the thread that decides has died, as only a bug can make it."""
        return self._deciding.alive

    # Life

    def start(self) -> None:
        """Take up what was wanted before, and begin. Raises StoreError."""
        for item in self._folder.load():
            if isinstance(item, DesiredModel):
                self._take_up(item)
            else:
                self.events.add(
                    EventKind.STORE_TROUBLE, message=f"{item} cannot be read; it is passed over"
                )
        self.loaded = True
        self.foresight.start()
        self._deciding.start()

    def drain(self, timeout_s: float = STOP_S) -> bool:
        """Take nothing new and stop what is under way; finished chunks are kept.

        What is wanted stays wanted, for the next start or `resume`. True when all has stopped in
        time. Idempotent.
        """
        self.refuse()
        return self.stop_pulls(timeout_s)

    def stop_pulls(self, timeout_s: float) -> bool:
        """After `refuse`: stop what is under way, unless the node has resumed.

        True when all has stopped in time, and nobody has resumed meanwhile. Idempotent.
        """
        board = self._board
        with board.changed:
            if board.draining:
                self._stop_running()
            board.changed.wait_for(lambda: not (board.draining and board.running()), timeout_s)
            return board.draining and not board.running()

    def refuse(self) -> None:
        """Take nothing new; what is under way goes on. Idempotent."""
        board = self._board
        with board.changed:
            first, board.draining = not board.draining, True
            board.changed.notify_all()
        if first:
            self.events.add(EventKind.DRAINING)

    def resume(self) -> None:
        """Take what is new again, and go on with what was wanted. Idempotent.

        A pull that goes on since it was not stopped yet begins anew, for its peers were told that
        it ends; it keeps its chunks.
        """
        board = self._board
        with board.changed:
            ended = board.draining and not board.closing
            if ended:
                self._stop_running()
                board.draining = False
                board.changed.notify_all()
        if ended:
            self.events.add(EventKind.DRAIN_ENDED)

    def _stop_running(self) -> None:
        """The caller holds the board's lock."""
        for wanted in self._board.running():
            if wanted.attempt is not None:
                wanted.attempt.stop(Stop.LEAVING)

    def close(self) -> None:
        """Stop, and give up all leases; what is wanted stays written down. Idempotent."""
        self.drain()
        self._deciding.close()
        for wanted in list(self._board.wanted.values()):
            self._attempting.let_go(wanted)
        self.foresight.close()

    # Wanting

    def want(
        self,
        ref: Ref,
        *,
        priority: int = Priority.PREWARM,
        lease: str = LEASE_DEFAULT,
        ttl_s: float | None = None,
        note: str = "",
        tenant: str = "",
        refresh: bool = False,
    ) -> DesiredModel:
        """Have a model brought here, and kept while it is wanted. Durable on return; idempotent.

        lease: the holder's name; a holder has one want for a ref, and the newer replaces the
        older. ttl_s: how long it holds; None for until it is released. tenant: who is charged with
        it. refresh: resolve the ref anew even if the model is warm. Raises UsageError, Forbidden,
        Draining, QuotaExceeded, StoreError.
        """
        check_want(lease, priority, ttl_s, note, tenant)
        self.reach.check(ref, tenant)
        given = Want(lease, int(priority), 0.0, None, note, tenant)
        with self._filing:
            if self.draining:
                raise Draining(f"node {self.name} is draining and takes nothing new")
            if self._quotas.limit(tenant) is not None:
                self._quotas.check(tenant, wanted_id(ref), self.statuses())
            known = self._known(ref)
            if known is None and len(self._board.wanted) >= DESIRED_MAX:
                raise UsageError(f"{DESIRED_MAX} models are wanted already; release some first")
            before = known.desired if known else DesiredModel(ref)
            desired = before.with_want(_timed(before, given, ttl_s))
            if desired != before:
                self._folder.save(desired)
            if known is None:
                self.events.add(
                    EventKind.QUEUED,
                    desired.wanted_id,
                    ref=ref.redacted(),
                    priority=desired.priority,
                    lease=lease,
                )
            self._put(desired, refresh=refresh)
        return desired

    def release(self, ref: Ref, lease: str | None = LEASE_DEFAULT) -> bool:
        """End one holder's want, or all for None; False if there was none.

        The model stays in the store until its room is needed. Raises StoreError.
        """
        return self.release_id(wanted_id(ref), lease)

    def release_id(self, wanted: str, lease: str | None) -> bool:
        """As `release`, by wanted id."""
        with self._filing:
            known = self._known_id(wanted)
            if known is None:
                return False
            after = known.desired.without(lease)
            if after.wants == known.desired.wants:
                return False
            self._reduce(known, after)
        self.events.add(
            EventKind.RELEASED, wanted, ref=known.desired.ref.redacted(), lease=lease or ""
        )
        return True

    def release_where(self, stale: Callable[[str, Want], bool]) -> bool:
        """End every want for which `stale(wanted id, want)` holds; False if there was none."""
        found = [
            (status.wanted_id, want.holder)
            for status in self.statuses()
            for want in status.wants
            if stale(status.wanted_id, want)
        ]
        return sum(self.release_id(wanted, holder) for wanted, holder in found) > 0

    def _reduce(self, known: Wanted, after: DesiredModel) -> None:
        """Fewer want it now, or nobody. The caller has `_filing`."""
        if after.wants:
            self._folder.save(after)
            self._put(after)
            return
        self._folder.remove(after)
        with self._board.changed:
            known.desired = after
            idle = known.attempt is None
            if known.attempt is not None:
                known.attempt.stop(Stop.RELEASED)
            else:
                self._board.wanted.pop(known.wanted_id, None)
            self._board.changed.notify_all()
        if idle:
            self._attempting.let_go(known)
        self.foresight.gave_up(known.wanted_id)

    def _put(self, desired: DesiredModel, *, refresh: bool = False) -> None:
        """Let what is wanted take effect. The caller has `_filing`."""
        now_s = monotonic()
        with self._board.changed:
            known = self._board.wanted.get(desired.wanted_id)
            begins = known is None
            if known is None:
                known = Wanted(desired, began_s=wall_clock_s())
                self._board.wanted[desired.wanted_id] = known
            before, known.desired = known.desired, desired
            if refresh:
                known.refresh, known.due_s = True, now_s
            elif known.phase is ModelPhase.FAILED and known.due_s is not None:
                known.due_s = min(known.due_s, now_s + ASKED_AGAIN_S)
                refresh = True
            if refresh and known.attempt is None:
                known.phase = ModelPhase.QUEUED  # whoever waits, waits for what comes now
            if desired.priority != before.priority:
                self._board.post(PriorityChanged(TransferId(desired.wanted_id), desired.priority))
            self._board.changed.notify_all()
        if begins:
            self.foresight.wants(desired)

    def _learned(self, wanted: Wanted, model_id: ModelId) -> None:
        """It is known what a ref means: the next start will hold that at once."""
        with self._filing:
            if wanted.desired.model_id == model_id or not wanted.desired.wants:
                return
            desired = replace(wanted.desired, model_id=model_id)
            self._folder.save(desired)
            with self._board.changed:
                wanted.desired = desired

    # Looking

    def status(self, ref: Ref) -> WantedStatus:
        """How far a wanted model is. Raises NotInStore when it is not wanted."""
        return self.status_id(wanted_id(ref))

    def status_id(self, wanted: str) -> WantedStatus:
        """As `status`, by wanted id."""
        with self._board.changed:
            known = self._board.wanted.get(wanted)
            if known is None or not known.desired.wants:
                raise NotInStore("that is not wanted on this node; ask for it with prefetch")
            return status_of(known, monotonic())

    def statuses(self) -> list[WantedStatus]:
        """All of them, the most urgent first."""
        now_s = monotonic()
        with self._board.changed:
            found = [status_of(w, now_s) for w in self._board.wanted.values() if w.desired.wants]
        return sorted(found, key=lambda status: (-status.priority, status.ref))

    def hurry(self, wanted: str) -> None:
        """Somebody waits for what is tried again later: try again soon, if time may heal it."""
        now_s = monotonic()
        with self._board.changed:
            known = self._board.wanted.get(wanted)
            if known is not None and known.attempt is None and known.due_s is not None:
                if known.phase is ModelPhase.QUEUED:
                    known.due_s = min(known.due_s, now_s + ASKED_AGAIN_S)
                self._board.changed.notify_all()

    def coming(self, ref: Ref) -> ModelId | None:
        """The model that a pull of this node has begun to bring for a ref; None while none has."""
        return self._attempting.being_pulled(ref)

    def wait(self, ref: Ref, timeout_s: float) -> WantedStatus:
        """Wait until a wanted model is warm or has failed, or the time is over.

        Raises NotInStore when it is not wanted, or not any more.
        """
        until_s = monotonic() + timeout_s
        while True:
            status = self.status(ref)
            left_s = until_s - monotonic()
            if status.phase.settled or left_s <= 0:
                return status
            with self._board.changed:
                self._board.changed.wait(min(left_s, TICK_S))

    def _known(self, ref: Ref) -> Wanted | None:
        return self._known_id(wanted_id(ref))

    def _known_id(self, wanted: str) -> Wanted | None:
        with self._board.changed:
            return self._board.wanted.get(wanted)

    # Looking after it

    def _take_up(self, desired: DesiredModel) -> None:
        """What was wanted before the restart: held at once, and pulled unless it is warm."""
        since_s = min((want.since_s for want in desired.wants), default=wall_clock_s())
        wanted = Wanted(desired, began_s=since_s)
        with self._board.changed:
            self._board.wanted[desired.wanted_id] = wanted
        self._review.take_up(wanted)

    def _hold_to_quotas(self) -> None:
        """Sizes become known after a want was let in. Raises StoreError."""
        if not self._quotas.limits:
            return
        with self._filing:
            excess = list(self._quotas.excess(self.statuses()))
            for wanted, holder, _ in excess:
                self.release_id(wanted, holder)
        for wanted, holder, why in excess:
            self.events.add(EventKind.REFUSED, wanted, lease=holder, message=why)

    def _expire(self) -> None:
        now_s = wall_clock_s()
        with self._board.changed:
            over = [
                wanted
                for wanted in self._board.wanted.values()
                if (at_s := wanted.desired.next_expiry_s()) is not None and at_s <= now_s
            ]
        for wanted in over:
            with self._filing:
                after = wanted.desired.expired(now_s)
                gone = len(wanted.desired.wants) - len(after.wants)
                if not gone:
                    continue
                self._reduce(wanted, after)
            self.events.add(
                EventKind.EXPIRED, wanted.wanted_id, ref=after.ref.redacted(), wants=gone
            )


def _timed(before: DesiredModel, want: Want, ttl_s: float | None) -> Want:
    """The want as it will stand; one that was there keeps the time since when."""
    now_s = wall_clock_s()
    known = (old.since_s for old in before.wants if old.holder == want.holder)
    expires_at_s = None if ttl_s is None else now_s + ttl_s
    return replace(want, since_s=next(known, now_s), expires_at_s=expires_at_s)
