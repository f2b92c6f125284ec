"""The planner's loop: an event comes in, actions go out, and nothing else happens.

It owns every decision of a transfer: order (largest blobs first, small ones in batches beside
them), which source, how long a request, how many at once, when to retry, when to hedge, when to
give up. It must not know what a socket, a file or a clock is: time is an argument, jitter comes
from the attempt's number, and so a run is repeated exactly by repeating its events. Production and
the simulator run this same class.

Life of a chunk:

    pending -> flying -> stored
       ^         |         |
       |         v         | ChunksLost
       +--- delayed <------+

A chunk is in exactly one of these states, except that a hedge lets it fly twice.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import deque
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.planner.events import (
    Action,
    AttemptEnded,
    AttemptFailed,
    AttemptId,
    BatchStored,
    BlobAdded,
    BlobDropped,
    BlobsAdded,
    Cancel,
    ChunksLost,
    ChunkStored,
    Event,
    Failure,
    Fetch,
    Finish,
    Forget,
    GiveUp,
    Remedy,
    SourceId,
    TimerDue,
    Wake,
)
from modelcache.planner.limits import PlannerLimits
from modelcache.planner.state import Attempt, BlobState, SourceState

_CORRUPT: Final = Failure(Remedy.CORRUPT, "digest_mismatch")
_HASH_PRIME: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio (Knuth's multiplicative hashing)


class Planner:
    """See the module. One instance serves one process's transfers; not thread-safe."""

    def __init__(self, limits: PlannerLimits) -> None:
        self._limits = limits
        self._blobs: dict[BlobId, BlobState] = {}
        self._large: list[tuple[int, int, BlobId]] = []  # (-size, order, blob) with pending chunks
        self._small: deque[BlobId] = deque()
        self._sequences: dict[str, list[BlobId]] = {}  # their blobs, in order
        self._delayed: list[tuple[float, int, BlobId, int]] = []  # heap of (due, order, chunk)
        self._attempts: dict[AttemptId, Attempt] = {}
        self._sources: dict[SourceId, SourceState] = {}
        self._next_attempt = 0
        self._next_order = 0
        self._small_in_flight = 0
        self._planned_bytes = 0
        self._hedged_bytes = 0
        self._wake_s: float | None = None

    @property
    def in_flight(self) -> int:
        """Attempts that have neither ended nor failed."""
        return len(self._attempts)

    def handle(self, event: Event, now_s: float) -> list[Action]:  # noqa: C901 - a table
        """Take one event; return what is to be done, in order. `now_s` never runs backwards."""
        actions: list[Action] = []
        match event:
            case BlobsAdded(blobs):
                for added in blobs:
                    self._on_added(added, actions)
            case BlobDropped(blob):
                self._on_dropped(blob, actions)
            case ChunkStored():
                self._on_stored(event, now_s, actions)
            case BatchStored():
                self._on_batch(event, now_s, actions)
            case ChunksLost():
                self._on_lost(event, actions)
            case AttemptEnded():
                self._on_ended(event, now_s, actions)
            case AttemptFailed():
                self._on_failed(event, now_s, actions)
            case TimerDue():
                self._wake_s = None
        self._release_delayed(now_s)
        self._dispatch(now_s, actions)
        self._set_timer(now_s, actions)
        return actions

    # Events

    def _on_added(self, added: BlobAdded, actions: list[Action]) -> None:
        if added.blob in self._blobs:
            return
        for source in added.sources:
            self._sources.setdefault(source, SourceState(self._limits))
        self._next_order += 1
        state = BlobState(added, order=self._next_order, limits=self._limits)
        self._blobs[added.blob] = state
        if added.sequence is not None:
            self._sequences.setdefault(added.sequence.name, []).append(added.blob)
        self._planned_bytes += added.grid.size_bytes
        if state.complete:
            self._finish(state, actions)
        elif not added.sources:
            self._give_up(state, Failure(Remedy.REFUSED, "no_source"), actions)
        else:
            self._enqueue(state)

    def _on_dropped(self, blob: BlobId, actions: list[Action]) -> None:
        state = self._blobs.pop(blob, None)
        if state is not None:
            self._abandon(state, actions)

    def _on_stored(self, event: ChunkStored, now_s: float, actions: list[Action]) -> None:
        attempt = self._attempts.get(event.attempt)
        state = self._blobs.get(event.blob)
        if state is None:
            return
        if attempt is not None:
            size = state.grid.span(event.chunk).size_bytes
            self._credit(attempt, size, state.grid.chunk_bytes, now_s)
        if state.stored[event.chunk]:
            return
        state.store(event.chunk)
        self._land(state, event.chunk, attempt, actions)
        if state.complete:
            self._finish(state, actions)

    def _on_batch(self, event: BatchStored, now_s: float, actions: list[Action]) -> None:
        """As if each had been stored and dropped; one sample of how long a batch takes."""
        attempt = self._attempts.get(event.attempt)
        states = [state for blob in event.blobs if (state := self._blobs.pop(blob, None))]
        for state in states:
            self._land(state, 0, attempt, actions)
        if attempt is not None and states:
            size = sum(state.grid.size_bytes for state in states)
            self._credit(attempt, size, size, now_s, requests=len(states))

    def _land(
        self, state: BlobState, chunk: int, attempt: Attempt | None, actions: list[Action]
    ) -> None:
        """Nobody owes this chunk any more; a twin that owes nothing else is stopped."""
        owed = (state.blob, chunk)
        for other in state.flying.pop(chunk, []):
            twin = self._attempts[other]
            if owed in twin.remaining:
                twin.remaining.remove(owed)
            if not twin.remaining and twin is not attempt:
                self._cancel(twin, actions)

    def _on_lost(self, event: ChunksLost, actions: list[Action]) -> None:
        state = self._blobs.get(event.blob)
        if state is None:
            return
        state.finished = False
        if self._is_hopeless(state):
            self._give_up(state, _CORRUPT, actions)
            return
        if event.chunks:
            for chunk in event.chunks:
                state.lose(chunk)
        else:
            state.lose_all()
        self._enqueue(state)

    def _on_ended(self, event: AttemptEnded, now_s: float, actions: list[Action]) -> None:
        attempt = self._close(event.attempt)
        if attempt is None:
            return
        self._sources[attempt.source].answered(event.first_byte_s)
        # Ended without all it owed: treat what is missing like any failure, or it would be lost.
        if attempt.remaining and not attempt.cancelled:
            self._retry(attempt, Failure(Remedy.RETRY, "incomplete"), now_s, actions)

    def _on_failed(self, event: AttemptFailed, now_s: float, actions: list[Action]) -> None:
        attempt = self._close(event.attempt)
        if attempt is None:
            return
        source = self._sources[attempt.source]
        remedy = Remedy.CANCELLED if attempt.cancelled else event.failure.remedy
        match remedy:
            case Remedy.CANCELLED:
                for blob, chunk in attempt.remaining:
                    self._requeue(blob, chunk)
            case Remedy.REFUSED:
                self._refuse(attempt, event, actions)
            case Remedy.RETRY | Remedy.THROTTLED | Remedy.RENEW | Remedy.CORRUPT:
                self._rest(source, event, now_s)
                self._retry(attempt, event.failure, now_s, actions)

    # Consequences

    def _rest(self, source: SourceState, event: AttemptFailed, now_s: float) -> None:
        """Let a source that asked for less, or that fails at every turn, have a pause."""
        failure = event.failure
        if failure.remedy is Remedy.THROTTLED:
            pause_s = failure.retry_after_s or self._limits.throttle_pause_s
            if now_s >= source.blocked_until_s:  # one burst of answers is one signal
                source.concurrency.throttled()
            source.blocked_until_s = max(source.blocked_until_s, now_s + pause_s)
        elif failure.remedy is Remedy.RETRY:
            source.failures_in_row += 1
            excess = source.failures_in_row - source.concurrency.limit
            if excess > 0:  # not one bad connection: the source itself
                source.blocked_until_s = now_s + self._backoff_s(excess, event.attempt)

    def _credit(
        self, attempt: Attempt, size: int, chunk_bytes: int, now_s: float, *, requests: int = 1
    ) -> None:
        """Learn from `size` bytes that came by `requests` of an attempt."""
        source = self._sources[attempt.source]
        seconds = now_s - attempt.since_s
        source.succeeded(size, seconds, small=attempt.small, chunk_bytes=chunk_bytes)
        saturated = bool(self._large or self._small)
        source.concurrency.done(size, chunk_bytes, now_s, saturated=saturated, requests=requests)
        attempt.since_s = now_s
        attempt.hedged = False

    def _finish(self, state: BlobState, actions: list[Action]) -> None:
        if not state.finished:
            state.finished = True
            self._forget_queue(state)
            actions.append(Finish(state.blob))

    def _give_up(self, state: BlobState, failure: Failure, actions: list[Action]) -> None:
        if self._blobs.pop(state.blob, None) is not None:
            self._abandon(state, actions)
            actions.append(GiveUp(state.blob, failure))

    def _abandon(self, state: BlobState, actions: list[Action]) -> None:
        self._forget_queue(state)
        flying = {attempt for attempts in state.flying.values() for attempt in attempts}
        for attempt_id in sorted(flying):
            attempt = self._attempts[attempt_id]
            attempt.remaining = deque(left for left in attempt.remaining if left[0] != state.blob)
            if not attempt.remaining:
                self._cancel(attempt, actions)

    def _cancel(self, attempt: Attempt, actions: list[Action]) -> None:
        if not attempt.cancelled:
            attempt.cancelled = True
            actions.append(Cancel(attempt.attempt))

    def _close(self, attempt_id: AttemptId) -> Attempt | None:
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is None:
            return None
        self._sources[attempt.source].in_flight -= attempt.weight
        self._small_in_flight -= attempt.weight if attempt.small else 0
        for blob, chunk in attempt.remaining:
            state = self._blobs.get(blob)
            flying = state.flying.get(chunk) if state else None
            if state and flying and attempt_id in flying:
                flying.remove(attempt_id)
                if not flying:
                    del state.flying[chunk]
        return attempt

    def _retry(
        self, attempt: Attempt, failure: Failure, now_s: float, actions: list[Action]
    ) -> None:
        """Put back what an attempt still owed; only the chunk it failed on is held responsible."""
        for position, (blob, chunk) in enumerate(attempt.remaining):
            state = self._blobs.get(blob)
            if state is None or chunk in state.flying or state.stored[chunk]:
                continue
            if not state.ranges:
                chunk = 0  # noqa: PLW2901 - one stream: all of it begins again
                if not self._restart(state, actions):
                    continue
            if position or not self._put_off(state, chunk, attempt, failure, now_s, actions):
                self._requeue(blob, chunk)

    def _put_off(  # noqa: PLR0917
        self,
        state: BlobState,
        chunk: int,
        attempt: Attempt,
        failure: Failure,
        now_s: float,
        actions: list[Action],
    ) -> bool:
        """Count a failure; the chunk waits, or its blob is given up. False: again at once."""
        match failure.remedy:
            case Remedy.THROTTLED:
                return False
            case Remedy.CORRUPT:
                hopeless = self._is_hopeless(state)
                count = 0
            case _:
                count = state.failures[chunk] = state.failures.get(chunk, 0) + 1
                hopeless = count > self._limits.retries_max
        if hopeless:
            self._give_up(state, failure, actions)
            return True
        if failure.remedy is Remedy.RETRY or count > 1:
            due_s = now_s + self._backoff_s(count, attempt.attempt)
            self._next_order += 1
            heapq.heappush(self._delayed, (due_s, self._next_order, state.blob, chunk))
            return True
        return False

    def _is_hopeless(self, state: BlobState) -> bool:
        """Count one more time that the blob was not what its origin says."""
        state.rounds += 1
        return state.rounds > self._limits.corrupt_rounds_max

    def _restart(self, state: BlobState, actions: list[Action]) -> bool:
        """Begin a one-stream blob anew. False when that has been done for this failure already."""
        if len(state.pending) == state.grid.count:
            return False
        if state.stored_count:
            actions.append(Forget(state.blob))
        state.lose_all()
        self._forget_queue(state)
        return True

    def _refuse(self, attempt: Attempt, event: AttemptFailed, actions: list[Action]) -> None:
        for blob, chunk in list(attempt.remaining):
            state = self._blobs.get(blob)
            if state is None:
                continue
            if event.blob is None or event.blob == blob:
                state.refused.add(attempt.source)
                if state.refused.issuperset(state.sources):
                    self._give_up(state, event.failure, actions)
                    continue
            if not state.ranges and not self._restart(state, actions):
                continue
            self._requeue(blob, chunk)

    def _requeue(self, blob: BlobId, chunk: int) -> None:
        state = self._blobs.get(blob)
        if state is None or state.stored[chunk] or chunk in state.flying:
            return
        state.pending.add(chunk, chunk + 1)
        self._enqueue(state)

    def _enqueue(self, state: BlobState) -> None:
        if state.small:
            self._small.append(state.blob)
            return
        if not state.queued:
            state.queued = True
            insort(self._large, state.rank)

    def _forget_queue(self, state: BlobState) -> None:
        if state.queued:
            state.queued = False
            del self._large[bisect_left(self._large, state.rank)]

    def _release_delayed(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            _, _, blob, chunk = heapq.heappop(self._delayed)
            state = self._blobs.get(blob)
            if state is not None and not state.ranges:
                self._enqueue(state)
            else:
                self._requeue(blob, chunk)

    def _backoff_s(self, count: int, attempt: AttemptId) -> float:
        limits = self._limits
        full = min(limits.backoff_max_s, limits.backoff_first_s * 2.0 ** min(count - 1, 16))
        jitter = ((attempt + 1) * _HASH_PRIME % (1 << 64)) / (1 << 64)
        return full * (0.5 + jitter / 2)

    # Dispatch

    def _dispatch(self, now_s: float, actions: list[Action]) -> None:
        while self._in_flight() < self._limits.connections_max:
            if not any(source.usable(now_s) for source in self._sources.values()):
                return
            fetch = self._next_small(now_s, share=True) or self._next_large(now_s)
            fetch = fetch or self._next_small(now_s, share=False)
            if fetch is None:
                if not self._small and not self._large:
                    self._hedge(now_s, actions)
                return
            actions.append(fetch)

    def _in_flight(self) -> int:
        """Connections that attempts count for."""
        return sum(source.in_flight for source in self._sources.values())

    def _next_small(self, now_s: float, *, share: bool) -> Fetch | None:
        """A batch of small blobs; with `share`, while they have under a quarter of the room."""
        lanes = self._lanes(now_s, share=share) if self._small else 0
        if lanes <= 0:
            return None
        most = self._fair_batch(lanes)
        left = self._limits.batch_bytes_max
        chosen: list[tuple[BlobId, int]] = []
        source: SourceId | None = None
        passed: list[BlobId] = []
        while self._small and len(chosen) < most and left > 0:
            blob = self._small.popleft()
            state = self._blobs.get(blob)
            if state is None or not len(state.pending):
                continue
            candidate = self._choose_source(state, now_s)
            if candidate is None or (source is not None and candidate != source):
                passed.append(blob)
                if len(passed) > self._limits.batch_blobs_max:
                    break
                continue
            source = candidate
            state.pending.take(1)
            left -= state.grid.size_bytes
            chosen.append((blob, 0))
        self._small.extendleft(reversed(passed))
        if source is None:
            return None
        lanes = min(lanes, len(chosen), self._sources[source].free(now_s))
        return self._launch(source, chosen, now_s, lanes=lanes)

    def _lanes(self, now_s: float, *, share: bool) -> int:
        """Connections that the next batch may keep busy; none rather than a thread for one or two.

        An uneven limit would else leave a batch of one connection beside the others for ever.
        """
        limit = sum(source.concurrency.limit for source in self._sources.values())
        free = max(source.free(now_s) for source in self._sources.values())
        room = limit
        if share and self._large:
            room = max(1, limit // 4)
            free = min(free, room - self._small_in_flight)
        wanted = min(self._limits.batch_weight, room)
        in_flight = self._in_flight()
        lanes = min(wanted, free, self._limits.connections_max - in_flight)
        return lanes if 4 * lanes >= wanted or not in_flight else 0

    def _fair_batch(self, lanes: int) -> int:
        """Blobs for one batch: few enough that all connections get some of what is left."""
        limit = max(source.concurrency.limit for source in self._sources.values())
        fair = min(self._limits.batch_blobs_max, len(self._small) // (2 * limit))
        return max(1, fair * lanes // self._limits.batch_weight)

    def _next_large(self, now_s: float) -> Fetch | None:
        for _, _, blob in self._large:
            state = self._blobs[blob]
            source = self._choose_source(state, now_s)
            if source is None or self._window_full(state):
                continue
            most = self._run_chunks(state, self._sources[source])
            first, end = state.pending.take(most)
            if not len(state.pending):
                self._forget_queue(state)
            chunks = [(blob, chunk) for chunk in range(first, end)]
            return self._launch(source, chunks, now_s)
        return None

    def _window_full(self, state: BlobState) -> bool:
        """Chunks read in order are kept near the front, and spread over blobs instead."""
        if not state.in_order:
            return False
        flying = self._flying(state)
        if flying < 2:  # noqa: PLR2004 - one ahead of the front
            return False
        waiting = (self._blobs[blob] for _, _, blob in self._large)
        peers = len({other.sequence for other in waiting if other.in_order})
        limit = max(self._sources[source].concurrency.limit for source in state.sources)
        return flying >= -(-limit // max(1, peers))

    def _flying(self, state: BlobState) -> int:
        """Chunks on their way of a blob, or of all of its sequence."""
        members = self._sequences.get(state.sequence)
        if members is None:
            return len(state.flying)
        return sum(len(self._blobs[blob].flying) for blob in members if blob in self._blobs)

    def _run_chunks(self, state: BlobState, source: SourceState) -> int:
        if not state.ranges:
            return state.grid.count
        chunk_s = state.grid.chunk_bytes / source.rate if source.rate else 0.0
        if state.in_order or len(state.pending) == 1 or chunk_s <= 0:
            return 1
        wanted = source.first_byte_s / (self._limits.run_overhead_share * chunk_s)
        if wanted <= 1:
            return 1
        left = sum(len(self._blobs[blob].pending) for _, _, blob in self._large)
        fair = left // (2 * source.concurrency.limit)
        return max(1, min(round(wanted), self._limits.run_chunks_max, fair))

    def _choose_source(
        self, state: BlobState, now_s: float, avoid: SourceId | None = None
    ) -> SourceId | None:
        usable = [
            (source == avoid, self._sources[source].failures_in_row, order, source)
            for order, source in enumerate(state.sources)
            if source not in state.refused and self._sources[source].usable(now_s)
        ]
        return min(usable)[-1] if usable else None

    def _launch(
        self,
        source: SourceId,
        chunks: list[tuple[BlobId, int]],
        now_s: float,
        *,
        lanes: int = 0,
        hedge: bool = False,
    ) -> Fetch:
        """lanes: of a batch of small blobs; 0 for a run of chunks."""
        attempt_id = AttemptId(self._next_attempt)
        self._next_attempt += 1
        small = lanes > 0
        attempt = Attempt(attempt_id, source, deque(chunks), now_s, small=small, hedge=hedge)
        attempt.weight = max(1, lanes)
        self._attempts[attempt_id] = attempt
        self._sources[source].in_flight += attempt.weight
        self._small_in_flight += lanes
        renew = False
        for blob, chunk in chunks:
            state = self._blobs[blob]
            state.flying.setdefault(chunk, []).append(attempt_id)
            renew = renew or chunk in state.failures
        return Fetch(attempt_id, source, attempt.runs(), attempt.weight, hedge=hedge, renew=renew)

    # Hedges and timers

    def _hedge(self, now_s: float, actions: list[Action]) -> None:
        """Nothing waits: send a second request for what is late, within the hedging budget."""
        for attempt in list(self._attempts.values()):
            if self._hedge_due_s(attempt) > now_s:
                continue
            blob, chunk = attempt.remaining[0]
            state = self._blobs[blob]
            size = state.grid.span(chunk).size_bytes
            budget = max(state.grid.chunk_bytes, self._limits.hedge_share * self._planned_bytes)
            source = self._choose_source(state, now_s, avoid=attempt.source)
            if source is None or self._hedged_bytes + size > budget:
                continue
            attempt.hedged = True
            self._hedged_bytes += size
            actions.append(
                self._launch(source, [(blob, chunk)], now_s, lanes=int(state.small), hedge=True)
            )

    def _hedge_due_s(self, attempt: Attempt) -> float:
        if attempt.hedge or attempt.hedged or attempt.cancelled or not attempt.remaining:
            return float("inf")
        blob, _ = attempt.remaining[0]
        if blob not in self._blobs or not self._blobs[blob].ranges:
            return float("inf")
        source = self._sources[attempt.source]
        return attempt.since_s + source.slow_s(self._limits, small=attempt.small)

    def _set_timer(self, now_s: float, actions: list[Action]) -> None:
        moments = [self._delayed[0][0]] if self._delayed else []
        if self._small or self._large:
            moments += [s.blocked_until_s for s in self._sources.values()]
        else:
            moments += [self._hedge_due_s(attempt) for attempt in self._attempts.values()]
        due_s = min((moment for moment in moments if moment > now_s), default=float("inf"))
        if due_s != float("inf") and due_s != self._wake_s:
            self._wake_s = due_s
            actions.append(Wake(due_s))
