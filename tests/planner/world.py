"""A small world in virtual time for the planner: attempts take seconds, fail by plan, or stall.

It carries out what the planner orders and checks at every step that the orders make sense.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

from modelcache.domain.manifests import BlobId
from modelcache.planner import (
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
    Planner,
    PlannerLimits,
    Remedy,
    SourceId,
    TimerDue,
    Wake,
)

STEPS_MAX = 200_000


@dataclass
class Trouble:
    """What goes wrong: failures still to come, drawn by a seed."""

    seed: int = 0
    failures: int = 0
    share: float = 0.3
    stalls: int = 0
    mismatches: int = 0
    kinds: tuple[Remedy, ...] = (Remedy.RETRY, Remedy.THROTTLED, Remedy.RENEW)
    refusing: frozenset[SourceId] = frozenset()


@dataclass
class World:
    """Run it; then look at `finished`, `given_up`, `fetched`."""

    limits: PlannerLimits
    trouble: Trouble = field(default_factory=Trouble)
    chunk_s: float = 1.0
    first_byte_s: float = 0.01

    def __post_init__(self) -> None:
        self.random = random.Random(self.trouble.seed)
        self.planner = Planner(self.limits)
        self.batches = bool(self.random.getrandbits(1))  # small blobs are told of in one go
        self.now_s = 0.0
        self.wake_s = float("inf")
        self.queue: list[tuple[float, int, Event]] = []
        self.order = 0
        self.blobs: dict[BlobId, BlobAdded] = {}
        self.stored: dict[BlobId, set[int]] = {}
        self.open: dict[AttemptId, Fetch] = {}
        self.dead: set[AttemptId] = set()
        self.finished: list[BlobId] = []
        self.given_up: dict[BlobId, Failure] = {}
        self.fetched: Counter[tuple[BlobId, int]] = Counter()
        self.fetches: list[Fetch] = []
        self.actions: list[tuple[float, Action]] = []
        self.forgets: list[BlobId] = []
        self.peak = 0

    def run(self, *blobs: BlobAdded) -> None:
        """Until nothing is left to happen."""
        for blob in blobs:
            self.blobs[blob.blob] = blob
            self.stored[blob.blob] = set(blob.done)
        self.feed(BlobsAdded(blobs))
        for _ in range(STEPS_MAX):
            if not self.step():
                return
        raise AssertionError("no end in sight")

    def step(self) -> bool:
        """One thing happens; False when there is nothing."""
        due_s = self.queue[0][0] if self.queue else float("inf")
        if due_s == float("inf") and self.wake_s == float("inf"):
            return False
        if self.wake_s <= due_s:
            self.now_s, self.wake_s = max(self.now_s, self.wake_s), float("inf")
            self.feed(TimerDue())
            return True
        self.now_s, _, event = heapq.heappop(self.queue)
        attempt = getattr(event, "attempt", None)
        if attempt in self.dead and not isinstance(event, AttemptFailed):
            return True
        if isinstance(event, AttemptEnded | AttemptFailed):
            if event.attempt not in self.open:
                return True
            del self.open[event.attempt]
        self.keep(event)
        self.feed(event)
        return True

    def keep(self, event: Event) -> None:
        """What a worker did before it told."""
        if isinstance(event, ChunkStored):
            self.stored[event.blob].add(event.chunk)
        elif isinstance(event, BatchStored):
            for blob in event.blobs:
                self.stored[blob].add(0)
            self.finished += [blob for blob in event.blobs if blob not in self.finished]

    def feed(self, event: Event) -> None:
        """Tell the planner, do what it says."""
        for action in self.planner.handle(event, self.now_s):
            self.actions.append((self.now_s, action))
            self.perform(action)
        connections = sum(fetch.lanes for fetch in self.open.values())
        self.peak = max(self.peak, connections)
        assert connections <= self.limits.connections_max
        waiting = [
            blob for blob in self.blobs if blob not in self.finished and blob not in self.given_up
        ]
        assert not waiting or self.queue or self.wake_s < float("inf"), f"stuck: {waiting}"

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Fetch():
                self.begin(action)
            case Cancel(attempt):
                assert attempt in self.open, "cancel of an attempt that is not open"
                self.dead.add(attempt)
                failure = Failure(Remedy.CANCELLED, "cancelled")
                self.later(0.01, AttemptFailed(attempt, failure))
            case Forget(blob):
                self.forgets.append(blob)
                self.stored[blob].clear()
            case Finish(blob):
                self.finish(blob)
            case GiveUp(blob, failure):
                assert blob not in self.given_up
                assert blob not in self.finished
                self.given_up[blob] = failure
            case Wake(at_s):
                self.wake_s = at_s

    def finish(self, blob: BlobId) -> None:
        """A blob is complete; sometimes its checksum is not."""
        added = self.blobs[blob]
        assert self.stored[blob] == set(range(added.grid.count))
        if self.trouble.mismatches and added.grid.count:
            self.trouble.mismatches -= 1
            lost = sorted(self.stored[blob])[: self.random.choice((1, 1000))]
            self.stored[blob].difference_update(lost)
            self.later(0.0, ChunksLost(blob, tuple(lost)))
            return
        assert blob not in self.finished
        self.finished.append(blob)
        self.later(0.0, BlobDropped(blob))

    def begin(self, fetch: Fetch) -> None:
        """An attempt starts; its whole fate is drawn now."""
        assert fetch.attempt not in self.open
        assert fetch.runs
        self.open[fetch.attempt] = fetch
        self.fetches.append(fetch)
        chunks = [(run.blob, chunk) for run in fetch.runs for chunk in range(run.first, run.end)]
        for blob, chunk in chunks:
            assert blob in self.blobs
            assert blob not in self.given_up
            if not fetch.hedge:
                assert chunk not in self.stored[blob], "fetched though stored"
            self.fetched[blob, chunk] += 1
        self.play(fetch, chunks)

    def play(self, fetch: Fetch, chunks: list[tuple[BlobId, int]]) -> None:
        """Schedule chunks, and the failure if there is one."""
        at_s = self.first_byte_s
        trouble = self.trouble
        good = len(chunks)
        if fetch.source in trouble.refusing:
            failure = Failure(Remedy.REFUSED, "forbidden")
            self.later(at_s, AttemptFailed(fetch.attempt, failure, chunks[0][0]))
            return
        fails = trouble.failures > 0 and self.random.random() < trouble.share
        stalls = not fails and trouble.stalls > 0 and not fetch.hedge
        if fails or stalls:
            good = self.random.randrange(len(chunks))
        batch: list[BlobId] = []
        for blob, chunk in chunks[:good]:
            size = self.blobs[blob].grid.span(chunk).size_bytes
            at_s += self.chunk_s * size / self.blobs[blob].grid.chunk_bytes
            if self.batches and self.small(blob):
                batch.append(blob)
            else:
                self.later(at_s, ChunkStored(fetch.attempt, blob, chunk))
        if batch:
            self.later(at_s, BatchStored(fetch.attempt, tuple(batch)))
        if fails:
            trouble.failures -= 1
            remedy = self.random.choice(trouble.kinds)
            after_s = self.random.choice((None, 0.5)) if remedy is Remedy.THROTTLED else None
            self.later(at_s, AttemptFailed(fetch.attempt, Failure(remedy, "planned", after_s)))
        elif stalls:
            trouble.stalls -= 1  # ends by Cancel, or like a stall timeout
            failure = Failure(Remedy.RETRY, "stalled")
            self.later(at_s + 300.0, AttemptFailed(fetch.attempt, failure))
        else:
            self.later(at_s, AttemptEnded(fetch.attempt, self.first_byte_s))

    def small(self, blob: BlobId) -> bool:
        """Whether the planner fetches it in batches."""
        grid = self.blobs[blob].grid
        return grid.count == 1 and grid.size_bytes <= self.limits.batch_blob_bytes

    def later(self, seconds: float, event: Event) -> None:
        """Something will happen."""
        self.order += 1
        heapq.heappush(self.queue, (self.now_s + seconds, self.order, event))
