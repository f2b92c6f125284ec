"""The planner's loop: an event comes in, actions go out, and nothing else happens.

Every decision of a transfer is made here or in what this class is made of: `dispatch` (what next:
largest blobs first, small ones in batches beside them; which source, how long a request, how many
at once), `swarm` (peers: who gives what, who is left alone), `progress` (who is ahead of whom) and
`audits` (who has lied), over the books that `board` keeps. What is left to this module is what
becomes of an attempt: stored, failed, retried, hedged, given up. It is longer than a sitting, and
stays together because each of these changes what the others mean. It must not know what a socket, a
file or a clock is: time is an argument, jitter comes from the attempt's number, and so a run is
repeated exactly by repeating its events. Production and the simulator run this same class.

Life of a chunk:

    pending -> flying -> stored
       ^         |         |
       |         v         | ChunksLost
       +--- delayed <------+

A chunk is in exactly one of these states, except that a hedge lets it fly twice, and that one
being audited is stored all the while.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.planner.audits import Audits
from modelcache.planner.board import Board
from modelcache.planner.dispatch import Dispatch
from modelcache.planner.events import (
    Action,
    Announce,
    AttemptEnded,
    AttemptFailed,
    AttemptId,
    BatchStored,
    BlobAdded,
    BlobDropped,
    BlobsAdded,
    ChunkAudited,
    ChunksLost,
    ChunkStored,
    ChunkWanted,
    Curtail,
    Doubted,
    Event,
    Failure,
    Finish,
    Forget,
    GiveUp,
    OriginCapped,
    Paused,
    PeerLeft,
    PeerTold,
    Remedy,
    SourceId,
    SwarmEvent,
    TimerDue,
    Waiter,
    Wake,
    peer_of,
    peer_source,
)
from modelcache.planner.limits import PlannerLimits
from modelcache.planner.progress import Progress
from modelcache.planner.state import Attempt, BlobState, PeerState, SourceState
from modelcache.planner.swarm import Swarm

NOBODY: Final = NodeId("")
NOT_HELD: Final = "not_held"  # code of the failure when a peer does not have a blob
_CORRUPT: Final = Failure(Remedy.CORRUPT, "digest_mismatch")
_HASH_PRIME: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio (Knuth's multiplicative hashing)


class Planner:
    """See the module. One instance serves one process's transfers; not thread-safe."""

    def __init__(self, limits: PlannerLimits, me: NodeId = NOBODY) -> None:
        """me: this node among its peers; without a name there are none."""
        self._limits = limits
        self._board = Board(limits, me)
        self._progress = Progress(self._board)
        self._dispatch = Dispatch(self._board, self._progress)
        self._swarm = Swarm(self._board, self._progress)
        self._audits = Audits(self._board)
        self._blobs = self._board.blobs
        self._attempts = self._board.attempts
        self._delayed: list[tuple[float, int, BlobId, int]] = []  # heap of (due, order, chunk)
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
                if self._board.me != NOBODY and not self._blobs:
                    self._board.begun_s = now_s
                    self._progress.begin()
                    self._board.gathering_until_s = now_s + self._limits.gathering_s
                    for peer in self._board.peers.values():
                        peer.received_bytes = 0  # how much each gives is a matter of this transfer
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
            case _:
                self._on_swarm(event, now_s, actions)
        self._release_delayed(now_s)
        self._launch_all(now_s, actions)
        self._set_timer(now_s, actions)
        return actions

    # Events

    def _on_swarm(self, event: SwarmEvent, now_s: float, actions: list[Action]) -> None:
        match event:
            case PeerTold():
                self._swarm.told(event, now_s)
            case PeerLeft(source):
                self._swarm.left(source)
            case ChunkWanted():
                self._on_wanted(event, now_s, actions)
            case ChunkAudited():
                self._on_audited(event, now_s, actions)
            case Doubted():
                self._on_doubted(event, actions)
            case Paused(paused, fully):
                self._board.held = fully
                self._on_paused(actions, paused=paused)
            case OriginCapped(connections, until_s):
                self._board.origin_connections = connections
                self._board.origins_rest_until_s = until_s

    def _on_wanted(self, event: ChunkWanted, now_s: float, actions: list[Action]) -> None:
        if event.waiter is Waiter.PEER:
            self._swarm.wanted(event, now_s, actions)
        else:
            self._dispatch.readers.wanted(event, actions)

    def _on_paused(self, actions: list[Action], *, paused: bool) -> None:
        self._board.paused = paused
        if not paused:
            return
        for attempt in self._attempts.values():
            if len(attempt.remaining) > 1 and not attempt.curtailed and not attempt.cancelled:
                attempt.curtailed = True
                actions.append(Curtail(attempt.attempt))

    def _on_audited(self, event: ChunkAudited, now_s: float, actions: list[Action]) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None and attempt.remaining:
            attempt.remaining.popleft()
        state = self._blobs.get(event.blob)
        if state is None:
            return
        by = attempt.source if attempt is not None else state.sources[0]
        liar = self._audits.audited(state, event, by)
        if liar is not None:
            self._swarm.lied(liar, now_s, actions)
            self._audits.condemn(liar, actions)
        if not state.audits and state.complete:
            self._finish(state, actions)  # what was replaced may have been all that was wrong

    def _on_doubted(self, event: Doubted, actions: list[Action]) -> None:
        state = self._blobs.get(event.blob)
        if state is None or self._audits.doubt(state, event.chunks):
            return
        actions.append(Forget(event.blob, event.chunks))
        self._on_lost(ChunksLost(event.blob, event.chunks), actions)

    def _on_added(self, added: BlobAdded, actions: list[Action]) -> None:
        if added.blob in self._blobs:
            return
        for source in added.sources:
            self._board.sources.setdefault(source, SourceState(self._limits))
        state = BlobState(added, order=self._board.next_order(), limits=self._limits)
        self._blobs[added.blob] = state
        if added.sequence is not None:
            self._board.sequences.setdefault(added.sequence.name, []).append(added.blob)
        self._board.planned_bytes += added.grid.size_bytes
        if state.complete:
            self._finish(state, actions)
        elif not added.sources:
            self._give_up(state, Failure(Remedy.REFUSED, "no_source"), actions)
        else:
            self._board.enqueue(state)

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
        own = attempt is not None and state.vouched(attempt.source, self._board.peers)
        state.store(event.chunk, own=own)
        if attempt is not None and attempt.source in self._board.peers:
            state.came_from[event.chunk] = attempt.source
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
                self._board.cancel(twin, actions)

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
        self._board.enqueue(state)

    def _on_ended(self, event: AttemptEnded, now_s: float, actions: list[Action]) -> None:
        attempt = self._board.close(event.attempt)
        if attempt is None:
            return
        self._board.source(attempt.source).answered(event.first_byte_s)
        if attempt.audit:
            self._audit_again(attempt, actions)
        elif not attempt.remaining or attempt.cancelled:
            return
        elif attempt.curtailed:
            self._requeue_all(attempt)
        else:
            # Ended without all it owed: treat it like any failure, or what is missing is lost.
            self._retry(attempt, Failure(Remedy.RETRY, "incomplete"), now_s, actions)

    def _on_failed(self, event: AttemptFailed, now_s: float, actions: list[Action]) -> None:
        attempt = self._board.close(event.attempt)
        if attempt is None:
            return
        source = self._board.source(attempt.source)
        remedy = Remedy.CANCELLED if attempt.cancelled else event.failure.remedy
        if attempt.audit:
            if attempt.source in self._board.peers and remedy is not Remedy.CANCELLED:
                self._on_peer_failed(attempt, event, now_s, actions)
            else:
                self._rest(source, event, now_s)
            self._audit_again(attempt, actions)
        elif remedy is Remedy.CANCELLED:
            self._requeue_all(attempt)
        elif attempt.source in self._board.peers:
            self._on_peer_failed(attempt, event, now_s, actions)
            self._requeue_all(attempt)
        elif remedy is Remedy.REFUSED:
            self._refuse(attempt, event, actions)
        else:
            self._rest(source, event, now_s)
            self._retry(attempt, event.failure, now_s, actions)

    def _on_peer_failed(
        self, attempt: Attempt, event: AttemptFailed, now_s: float, actions: list[Action]
    ) -> None:
        """Peers come and go: what one owed is asked of others, and no chunk is blamed for it."""
        failure = event.failure
        peer = self._board.peers[attempt.source]
        match failure.remedy:
            case Remedy.NOT_YET | Remedy.THROTTLED:
                pause_s = failure.retry_after_s or self._limits.not_yet_pause_s
                peer.blocked_until_s = max(peer.blocked_until_s, now_s + pause_s)
            case Remedy.REFUSED if event.blob is not None and failure.code == NOT_HELD:
                self._swarm.denied(attempt.source, event.blob)
            case Remedy.REFUSED | Remedy.CORRUPT:
                self._swarm.failed(attempt.source, now_s, actions, bad=True)
            case _:
                self._swarm.failed(attempt.source, now_s, actions, bad=False)

    def _audit_again(self, attempt: Attempt, actions: list[Action]) -> None:
        """An audit that was cut off, if it was; the origin has had its pause."""
        for blob, chunk in attempt.remaining:
            state = self._blobs.get(blob)
            if state is None or chunk not in state.audits:
                continue
            if state.complete and not state.doubted:
                state.audits.discard(chunk)
                self._finish(state, actions)
            else:
                self._board.audits.append((blob, chunk))

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
        source = self._board.source(attempt.source)
        seconds = now_s - attempt.since_s
        source.succeeded(size, seconds, small=attempt.small, chunk_bytes=chunk_bytes)
        source.arrived(size, now_s, self._limits.rate_memory_s)
        if isinstance(source, PeerState):
            source.late = source.quarantines = 0
            saturated = attempt.source in self._board.shares
        else:
            saturated = bool(self._board.large or self._board.small)
            if self._board.shares:  # in a swarm it is not always the limit that holds back
                saturated = saturated and source.in_flight >= source.concurrency.limit
        source.concurrency.done(size, chunk_bytes, now_s, saturated=saturated, requests=requests)
        attempt.since_s = now_s
        attempt.hedged = False

    def _finish(self, state: BlobState, actions: list[Action]) -> None:
        """Have it verified and published, once, and not while an audit may change a chunk of it."""
        if not state.finished and self._audits.over(state, actions):
            state.finished = True
            self._board.forget_queues(state)
            actions.append(Finish(state.blob))

    def _give_up(self, state: BlobState, failure: Failure, actions: list[Action]) -> None:
        if self._blobs.pop(state.blob, None) is not None:
            self._abandon(state, actions)
            actions.append(GiveUp(state.blob, failure))

    def _abandon(self, state: BlobState, actions: list[Action]) -> None:
        self._board.forget_queues(state)
        flying = {attempt for attempts in state.flying.values() for attempt in attempts}
        for attempt_id in sorted(flying):
            attempt = self._attempts[attempt_id]
            attempt.remaining = deque(left for left in attempt.remaining if left[0] != state.blob)
            if not attempt.remaining:
                self._board.cancel(attempt, actions)

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
            heapq.heappush(self._delayed, (due_s, self._board.next_order(), state.blob, chunk))
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
        self._board.forget_queues(state)
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

    def _requeue_all(self, attempt: Attempt) -> None:
        """Put back all that an attempt still owed, nobody's fault."""
        for blob, chunk in attempt.remaining:
            self._requeue(blob, chunk)

    def _requeue(self, blob: BlobId, chunk: int) -> None:
        state = self._blobs.get(blob)
        if state is None or state.stored[chunk] or chunk in state.flying:
            return
        state.pending.add(chunk, chunk + 1)
        self._board.enqueue(state)

    def _release_delayed(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            _, _, blob, chunk = heapq.heappop(self._delayed)
            state = self._blobs.get(blob)
            if state is not None and not state.ranges:
                self._board.enqueue(state)
            else:
                self._requeue(blob, chunk)

    def _backoff_s(self, count: int, attempt: AttemptId) -> float:
        limits = self._limits
        full = min(limits.backoff_max_s, limits.backoff_first_s * 2.0 ** min(count - 1, 16))
        jitter = ((attempt + 1) * _HASH_PRIME % (1 << 64)) / (1 << 64)
        return full * (0.5 + jitter / 2)

    # What is next

    def _launch_all(self, now_s: float, actions: list[Action]) -> None:
        while True:
            while (fetch := self._dispatch.next(now_s)) is not None:
                actions.append(fetch)
                if now_s < self._board.gathering_until_s and peer_of(fetch.source) is None:
                    actions.append(Announce())  # it may be another's, who begins a moment later
            if self._board.paused:
                return
            if not self._board.waiting:
                self._hedge(now_s, actions)
                return
            if not self._swarm.due(now_s):
                return
            if not self._swarm.check(now_s, actions):
                return

    def _hedge(self, now_s: float, actions: list[Action]) -> None:
        """Send a second request for what is late, within the hedging budget."""
        board = self._board
        for attempt in list(self._attempts.values()):
            if self._hedge_due_s(attempt) > now_s:
                continue
            blob, chunk = attempt.remaining[0]
            state = self._blobs[blob]
            size = state.grid.span(chunk).size_bytes
            # What every node of a swarm may do has to be little for all of them.
            nodes = state.shares.fetchers if state.shares is not None else 1
            share = self._limits.hedge_share * board.planned_bytes / nodes
            budget = max(state.grid.chunk_bytes, share)
            source = self._second_source(state, chunk, attempt, now_s)
            if source is None or board.hedged_bytes + size > budget:
                continue
            attempt.hedged = True
            board.hedged_bytes += size
            serve = self._dispatch.serves(state, source)
            lanes = int(state.small)
            actions.append(
                board.launch(source, [(blob, chunk)], now_s, lanes=lanes, hedge=True, serve=serve)
            )
            if attempt.source in board.peers:
                self._swarm.late(attempt.source, now_s, actions)

    def _second_source(
        self, state: BlobState, chunk: int, attempt: Attempt, now_s: float
    ) -> SourceId | None:
        """Who else can give a chunk now: a peer if any has it, even a busy one; else an origin."""
        if state.shares is not None:
            others = [
                source
                for node in state.shares.has(chunk)
                if (source := peer_source(node)) != attempt.source
            ]
            if others:
                free = (source for source in others if self._dispatch.free(source, now_s) > 0)
                return next(free, None)
        return self._dispatch.origin_of(state, now_s, avoid=attempt.source)

    def _hedge_due_s(self, attempt: Attempt) -> float:
        if attempt.hedge or attempt.hedged or attempt.cancelled or attempt.audit:
            return float("inf")
        if not attempt.remaining:
            return float("inf")
        blob, _ = attempt.remaining[0]
        if blob not in self._blobs or not self._blobs[blob].ranges:
            return float("inf")
        source = self._board.source(attempt.source)
        return attempt.since_s + source.slow_s(self._limits, small=attempt.small)

    def _set_timer(self, now_s: float, actions: list[Action]) -> None:
        board = self._board
        moments = [self._delayed[0][0]] if self._delayed else []
        if board.waiting or board.audits:
            moments += [source.blocked_until_s for source in board.sources.values()]
            moments += [board.origins_rest_until_s, board.gathering_until_s]
            moments += [board.peers[source].blocked_until_s for source in board.shares]
            moments.append(self._swarm.check_s if board.shares else 0.0)
        else:
            moments += [self._hedge_due_s(attempt) for attempt in self._attempts.values()]
        due_s = min((moment for moment in moments if moment > now_s), default=float("inf"))
        if due_s != float("inf") and due_s != self._wake_s:
            self._wake_s = due_s
            actions.append(Wake(due_s))
