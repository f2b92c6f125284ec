"""What the planner remembers about blobs, sources and attempts. Plain records, no decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, replace
from math import exp
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.planner.concurrency import Concurrency
from modelcache.planner.events import UNKNOWN_PEER, AttemptId, BlobAdded, Run, SourceId
from modelcache.planner.intervals import Intervals
from modelcache.planner.limits import PlannerLimits
from modelcache.planner.lots import Lots
from modelcache.planner.shares import Shares

SAMPLES: Final = 64  # durations remembered: enough for a 95th percentile
_KEPT: Final = 0.98  # of the best rate, at every chunk
_FRESHNESS: Final = 0.2  # weight of the newest sample in a running average


class BlobState:
    """One wanted blob: what is stored, what waits, what is on its way."""

    __slots__ = (
        "audits",
        "blob",
        "came_from",
        "compared",
        "comparing",
        "disputed",
        "doubted",
        "failures",
        "finished",
        "flying",
        "grid",
        "holders",
        "in_order",
        "order",
        "own",
        "pending",
        "queued",
        "ranges",
        "rank_bytes",
        "refused",
        "rounds",
        "sequence",
        "shares",
        "small",
        "sources",
        "stored",
        "stored_count",
    )

    def __init__(self, added: BlobAdded, *, order: int, limits: PlannerLimits) -> None:
        self.blob = added.blob
        self.grid: ChunkGrid = added.grid
        self.sources = added.sources
        self.ranges = added.ranges
        self.in_order = added.in_order
        self.order = order
        sequence = added.sequence
        self.sequence = sequence.name if sequence else added.blob
        self.rank_bytes = sequence.size_bytes if sequence else added.grid.size_bytes
        self.small = added.grid.count <= 1 and added.grid.size_bytes <= limits.batch_blob_bytes
        done = added.done if added.ranges else frozenset[int]()
        self.stored = bytearray(added.grid.count)
        for chunk in done:
            self.stored[chunk] = 1
        self.stored_count = len(done)
        self.own = bytearray(self.stored)  # those that may be passed on before all is verified
        for chunk in added.relayed & done:
            self.own[chunk] = 0
        self.pending = Lots(Intervals.missing(added.grid.count, done))
        self.flying: dict[int, list[AttemptId]] = {}
        self.failures: dict[int, int] = {}
        self.refused: set[SourceId] = set()
        self.rounds = 0
        self.finished = False
        self.queued: dict[SourceId, None] = {}  # lots that stand in a queue
        self.shares: Shares | None = None  # who gives what; None while there is nobody but origins
        self.holders: dict[SourceId, None] = {}  # of a small blob: peers that have it
        # Chunks that peers gave, and nobody has audited.
        self.came_from = dict.fromkeys(sorted(added.relayed), UNKNOWN_PEER)
        self.doubted = 0  # rounds of audits so far
        self.audits: set[int] = set()  # chunks being audited
        self.comparing = True  # with nodes that have the blob verified, before the origin
        self.compared: set[int] = set()  # chunks that are the same there
        self.disputed: dict[int, SourceId] = {}  # and that are not, and where

    @property
    def rank(self) -> tuple[int, int, BlobId]:
        """Where it stands among the large blobs: the largest first, a sequence together."""
        return (-self.rank_bytes, self.order, self.blob)

    @property
    def complete(self) -> bool:
        """Every chunk is stored."""
        return self.stored_count == self.grid.count

    def vouched(self, source: SourceId, peers: Container[SourceId]) -> bool:
        """Whether what a source gives is the origin's: it is one, or has verified the blob."""
        if source not in peers:
            return True
        return self.shares is not None and self.shares.vouches(source)

    def store(self, chunk: int, *, own: bool) -> None:
        """Mark one chunk as stored. own: it may be passed on."""
        self.stored[chunk] = 1
        self.own[chunk] = own
        self.stored_count += 1
        self.pending.discard(chunk)
        self._forget_giver_of(chunk)
        self.failures.pop(chunk, None)

    def lose(self, chunk: int) -> None:
        """Mark one stored chunk as missing again."""
        if self.stored[chunk]:
            self.stored[chunk] = self.own[chunk] = 0
            self.stored_count -= 1
        self._forget_giver_of(chunk)
        self.pending.add(chunk, chunk + 1)

    def lose_all(self) -> None:
        """Start over."""
        self.stored = bytearray(self.grid.count)
        self.own = bytearray(self.grid.count)
        self.stored_count = 0
        self.came_from.clear()
        self.compared.clear()
        self.disputed.clear()
        self.pending.add(0, self.grid.count)

    def _forget_giver_of(self, chunk: int) -> None:
        self.came_from.pop(chunk, None)
        self.compared.discard(chunk)
        self.disputed.pop(chunk, None)


class SourceState:
    """How one source behaves."""

    __slots__ = (
        "_rated_at_s",
        "best_rate",
        "blocked_until_s",
        "concurrency",
        "durations",
        "failures_in_row",
        "first_byte_s",
        "in_flight",
        "rate",
        "received_bytes",
        "total_rate",
    )

    def __init__(self, limits: PlannerLimits) -> None:
        self.concurrency = Concurrency(limits)
        self.received_bytes = 0
        self.total_rate = 0.0  # bytes per second of all connections, at `_rated_at_s`
        self.best_rate = 0.0  # the most of that, forgotten slowly
        self._rated_at_s = 0.0
        self.in_flight = 0
        self.blocked_until_s = 0.0
        self.failures_in_row = 0
        self.first_byte_s = 0.0
        self.rate = 0.0  # bytes per second of one connection
        self.durations: tuple[deque[float], deque[float]] = (
            deque(maxlen=SAMPLES),  # of chunks
            deque(maxlen=SAMPLES),  # of small blobs
        )

    def succeeded(self, size_bytes: int, seconds: float, *, small: bool, chunk_bytes: int) -> None:
        """One chunk, or a batch, came in `seconds`."""
        self.failures_in_row = 0
        if small or 2 * size_bytes >= chunk_bytes:  # next to a blob's tail, any chunk looks slow
            self.durations[small].append(seconds)
        if not small and seconds > 0:
            rate = size_bytes / seconds
            self.rate += (rate - self.rate) * (_FRESHNESS if self.rate else 1.0)

    def answered(self, first_byte_s: float) -> None:
        """A request was answered after `first_byte_s`."""
        weight = _FRESHNESS if self.first_byte_s else 1.0
        self.first_byte_s += (first_byte_s - self.first_byte_s) * weight

    def free(self, now_s: float) -> int:
        """Connections that may be added."""
        resting = now_s < self.blocked_until_s
        return 0 if resting else max(0, self.concurrency.limit - self.in_flight)

    def arrived(self, size_bytes: int, now_s: float, memory_s: float) -> None:
        """Bytes came, whatever connection: for the rate of all of them together."""
        self.received_bytes += size_bytes
        self.total_rate = self.rate_at(now_s, memory_s) + size_bytes / memory_s
        self._rated_at_s = now_s
        self.best_rate = max(self.total_rate, self.best_rate * _KEPT)

    def rate_at(self, now_s: float, memory_s: float) -> float:
        """Bytes a second over the last `memory_s` or so."""
        return self.total_rate * exp((self._rated_at_s - now_s) / memory_s)

    def unknown_s(self, limits: PlannerLimits) -> float:
        """After how many seconds it is one, with nothing to compare with."""
        return limits.hedge_unknown_s

    def slow_s(self, limits: PlannerLimits, *, small: bool) -> float:
        """After how many seconds a chunk on its way is a straggler."""
        samples = self.durations[small]
        if len(samples) < limits.hedge_samples_min:
            return self.unknown_s(limits)
        late = sorted(samples)[(len(samples) * 95) // 100]
        return max(limits.hedge_min_s, limits.hedge_factor * late)


class PeerState(SourceState):
    """How one peer behaves."""

    __slots__ = ("late", "quarantined_until_s", "quarantines", "since_s", "turn")

    def __init__(self, limits: PlannerLimits, since_s: float) -> None:
        """since_s: when it was first heard of."""
        super().__init__(
            replace(
                limits,
                connections_start=limits.peer_fetching_connections,
                connections_max=limits.peer_complete_connections,
            )
        )
        self.since_s = since_s
        self.quarantined_until_s = 0.0
        self.quarantines = 0  # in a row
        self.turn = 0  # when it was asked last, in the order of all askings
        self.late = 0  # attempts in a row that were hedged before anything came

    def unknown_s(self, limits: PlannerLimits) -> float:
        """See SourceState."""
        return limits.hedge_unknown_peer_s


@dataclass(slots=True)
class Attempt:
    """One worker's task: chunks still to come, in order."""

    attempt: AttemptId
    source: SourceId
    remaining: deque[tuple[BlobId, int]]
    since_s: float  # when the chunk now on its way was started
    small: bool
    hedge: bool
    hedged: bool = False
    cancelled: bool = False
    curtailed: bool = False
    audit: bool = False
    weight: int = 1  # connections it counts for

    def runs(self) -> tuple[Run, ...]:
        """What is still to come, neighbours of one blob joined."""
        runs: list[Run] = []
        for blob, chunk in self.remaining:
            if runs and runs[-1].blob == blob and runs[-1].end == chunk:
                runs[-1] = Run(blob, runs[-1].first, runs[-1].count + 1)
            else:
                runs.append(Run(blob, chunk, 1))
        return tuple(runs)
