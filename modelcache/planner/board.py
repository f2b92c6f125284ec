"""What all parts of the planner look at and change: blobs, queues, sources, attempts.

It keeps the books and decides nothing. A blob with pending chunks stands in one queue for each of
its lots: in `large` for what its origin should give, in `shares` for what a peer should.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.planner.events import Action, AttemptId, Cancel, Fetch, SourceId
from modelcache.planner.limits import PlannerLimits
from modelcache.planner.lots import ORIGIN
from modelcache.planner.state import Attempt, BlobState, PeerState, SourceState

Rank = tuple[int, int, BlobId]  # (-size, order, blob)


class Board:
    """See the module. Not thread-safe."""

    def __init__(self, limits: PlannerLimits, me: NodeId) -> None:
        self.limits = limits
        self.me = me
        self.blobs: dict[BlobId, BlobState] = {}
        self.large: list[Rank] = []
        self.shares: dict[SourceId, list[Rank]] = {}  # by peer; no empty ones
        self.small: deque[BlobId] = deque()
        self.urgent: deque[tuple[BlobId, int]] = deque()  # chunks that peers wait for
        self.audits: deque[tuple[BlobId, int]] = deque()
        self.sequences: dict[str, list[BlobId]] = {}  # their blobs, in order
        self.attempts: dict[AttemptId, Attempt] = {}
        self.sources: dict[SourceId, SourceState] = {}  # origins
        self.peers: dict[SourceId, PeerState] = {}
        self.leaving: dict[SourceId, None] = {}  # peers that give what they have, and go
        self.small_in_flight = 0
        self.origins_in_flight = 0
        self.peers_in_flight = 0
        self.planned_bytes = 0
        self.hedged_bytes = 0
        self.begun_s = 0.0  # when the first blob was wanted
        self.gathering_until_s = 0.0  # others may be about to begin too
        self.stealing = False  # origins are read for what peers owe: they are that much faster
        self.paused = False
        self.held = False  # and nothing goes on for others either
        self.origin_connections: int | None = None  # the cap on all origins together
        self.origins_rest_until_s = 0.0
        self._next_attempt = 0
        self._next_order = 0

    @property
    def waiting(self) -> bool:
        """Whether chunks wait to be fetched."""
        return bool(self.large or self.small or self.shares)

    @property
    def in_flight(self) -> int:
        """Connections that attempts count for."""
        return self.origins_in_flight + self.peers_in_flight

    def next_order(self) -> int:
        """Another number than ever before."""
        self._next_order += 1
        return self._next_order

    def source(self, source: SourceId) -> SourceState:
        """An origin or a peer."""
        return self.peers.get(source) or self.sources[source]

    # Queues

    def enqueue(self, state: BlobState) -> None:
        """Let a blob stand wherever chunks of it wait."""
        if state.small:
            self.small.append(state.blob)
            return
        for source in state.pending.sources():
            if source not in state.queued:
                state.queued[source] = None
                queue = self.large if source == ORIGIN else self.shares.setdefault(source, [])
                insort(queue, state.rank)

    def settle(self, state: BlobState, source: SourceId) -> None:
        """Take a blob from a queue if nothing of its lot waits any more."""
        if source in state.queued and not state.pending.count(source):
            self._unqueue(state, source)

    def settle_all(self, state: BlobState) -> None:
        """The same for all its lots, and let it stand where it has new ones."""
        for source in list(state.queued):
            self.settle(state, source)
        if not state.small:
            self.enqueue(state)

    def forget_queues(self, state: BlobState) -> None:
        """Take a blob from all queues, whatever waits."""
        for source in list(state.queued):
            self._unqueue(state, source)

    def _unqueue(self, state: BlobState, source: SourceId) -> None:
        del state.queued[source]
        queue = self.large if source == ORIGIN else self.shares[source]
        del queue[bisect_left(queue, state.rank)]
        if not queue and source != ORIGIN:
            del self.shares[source]

    # Attempts

    def launch(
        self,
        source: SourceId,
        chunks: list[tuple[BlobId, int]],
        now_s: float,
        *,
        lanes: int = 0,
        hedge: bool = False,
        audit: bool = False,
        serve: bool = True,
    ) -> Fetch:
        """Begin an attempt. lanes: of a batch of small blobs; 0 for a run of chunks."""
        attempt_id = AttemptId(self._next_attempt)
        self._next_attempt += 1
        attempt = Attempt(attempt_id, source, deque(chunks), now_s, small=lanes > 0, hedge=hedge)
        attempt.weight = max(1, lanes)
        attempt.audit = audit
        self.attempts[attempt_id] = attempt
        self._count(attempt, 1)
        renew = False
        for blob, chunk in chunks:
            state = self.blobs[blob]
            if not audit:
                state.flying.setdefault(chunk, []).append(attempt_id)
            renew = renew or chunk in state.failures
        return Fetch(
            attempt_id,
            source,
            attempt.runs(),
            attempt.weight,
            hedge=hedge,
            renew=renew,
            serve=serve,
            audit=audit,
        )

    def close(self, attempt_id: AttemptId) -> Attempt | None:
        """An attempt is over; what it still owed flies no more."""
        attempt = self.attempts.pop(attempt_id, None)
        if attempt is None:
            return None
        self._count(attempt, -1)
        for blob, chunk in attempt.remaining:
            state = self.blobs.get(blob)
            flying = state.flying.get(chunk) if state else None
            if state and flying and attempt_id in flying:
                flying.remove(attempt_id)
                if not flying:
                    del state.flying[chunk]
        return attempt

    def cancel(self, attempt: Attempt, actions: list[Action]) -> None:
        """End an attempt early, once."""
        if not attempt.cancelled:
            attempt.cancelled = True
            actions.append(Cancel(attempt.attempt))

    def _count(self, attempt: Attempt, sign: int) -> None:
        weight = sign * attempt.weight
        self.source(attempt.source).in_flight += weight
        if attempt.source in self.peers:
            self.peers_in_flight += weight
        else:
            self.origins_in_flight += weight
        if attempt.small:
            self.small_in_flight += weight
