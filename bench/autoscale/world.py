"""Nodes, replicas, a queue and a clock: discrete events, of which a second's arrivals are one.

A replica that starts takes a warm node if there is one, else one that is made for it: then its
node, the whole fetch and the load have to be waited for. A node whose replica has gone is warm, and
is given back after ten minutes without one, as Cluster Autoscaler does by default, unless the
scaler wants it kept. Requests wait in one queue, first come first served.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Protocol

SYNC_S: Final = 15
CARRIES: Final = 2.0  # requests a second of one replica
SERVICE_S: Final = 8.0  # of one request
OBJECTIVE_S: Final = 5.0  # a request that waits longer is late
IDLE_NODE_S: Final = 600
REPLICAS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in seconds, and how far single starts spread (of the logarithm).

    cold_s: 140 GB at a third of a GB/s, and the load. node_s: until a new node is there.
    """

    warm_s: float = 45.0
    cold_s: float = 420.0
    node_s: float = 120.0
    spread: float = 0.1


@dataclass(slots=True)
class Replica:
    """One that starts or serves."""

    number: int
    warm: bool
    begun_s: float
    ready_s: float
    ready: bool = False


@dataclass(slots=True)
class Seen:
    """What a scaler may know. starts: durations by tier, newest last."""

    now_s: float
    arrived: int
    waiting: float
    in_flight: float
    replicas: list[Replica]
    warm_free: int
    warming: int
    starts: dict[str, list[float]]


class Scaler(Protocol):
    """Decides."""

    def decide(self, seen: Seen) -> tuple[int, int]:
        """Replicas to have, and nodes to keep warm with none."""
        ...


@dataclass(slots=True)
class Outcome:
    """A day. episodes: how long it took until nobody waited too long any more, each time."""

    requests: int = 0
    late: int = 0
    replica_s: float = 0.0
    node_s: float = 0.0
    cold_starts: int = 0
    most_replicas: int = 0
    episodes: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)  # each minute
    ready: list[int] = field(default_factory=list)


class World:
    """See the module."""

    def __init__(self, arrivals: list[int], scaler: Scaler, times: Times, seed: int) -> None:
        self._arrivals = arrivals
        self._scaler = scaler
        self._times = times
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, str, int]] = []
        self._numbers = 0
        self._replicas: dict[int, Replica] = {}
        self._free: deque[float] = deque()  # since when, of warm nodes
        self._warming = 0
        self._kept = 0
        self._queue: deque[list[float]] = deque()  # when, how many
        self._waiting = 0.0
        self._served = 0.0
        self._arrived = 0
        self._late_since_s: float | None = None
        self._starts: dict[str, list[float]] = {"warm": [], "cold": []}
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """The day, beginning with as many replicas as its first minute takes."""
        self._served = sum(self._arrivals[:60]) / 60
        for _ in range(max(1, math.ceil(self._served / CARRIES / 0.7))):
            replica = self._new(warm=True, lead_s=0.0, now_s=0.0)
            replica.ready = True
        for second in range(len(self._arrivals)):
            heappush(self._events, (float(second), 1, "second", second))
            if second % SYNC_S == 0:
                heappush(self._events, (float(second), 2, "sync", 0))
        while self._events:
            now_s, _, kind, number = heappop(self._events)
            if kind == "second":
                self._second(now_s, number)
            elif kind == "sync":
                self._sync(now_s)
            elif kind == "ready":
                self._ready(number)
            else:
                self._warming -= 1
                self._free.append(now_s)
        return self.outcome

    def _second(self, now_s: float, second: int) -> None:
        came = self._arrivals[second]
        self._arrived += came
        self.outcome.requests += came
        if came:
            self._queue.append([now_s, float(came)])
            self._waiting += came
        ready = sum(replica.ready for replica in self._replicas.values())
        left = capacity = ready * CARRIES
        while left > 0 and self._queue:
            when_s, count = self._queue[0]
            taken = min(left, count)
            left -= taken
            self._waiting -= taken
            if now_s - when_s > OBJECTIVE_S:
                self.outcome.late += round(taken)
            if taken == count:
                self._queue.popleft()
            else:
                self._queue[0][1] -= taken
        self._served += ((capacity - left) - self._served) / SERVICE_S
        self._watch(now_s)
        outcome = self.outcome
        outcome.replica_s += len(self._replicas)
        outcome.node_s += len(self._replicas) + len(self._free) + self._warming
        outcome.most_replicas = max(outcome.most_replicas, len(self._replicas))
        if second % 60 == 0:
            outcome.replicas.append(len(self._replicas))
            outcome.ready.append(ready)

    def _watch(self, now_s: float) -> None:
        late = bool(self._queue) and now_s - self._queue[0][0] > OBJECTIVE_S
        if late and self._late_since_s is None:
            self._late_since_s = now_s
        elif not late and self._late_since_s is not None:
            self.outcome.episodes.append(now_s - self._late_since_s)
            self._late_since_s = None

    def _sync(self, now_s: float) -> None:
        seen = Seen(
            now_s,
            self._arrived,
            self._waiting,
            self._waiting + self._served * SERVICE_S,
            list(self._replicas.values()),
            len(self._free),
            self._warming,
            self._starts,
        )
        wanted, self._kept = self._scaler.decide(seen)
        wanted = min(REPLICAS_MAX, max(1, wanted))
        while len(self._replicas) < wanted:
            self._start(now_s)
        while len(self._replicas) > wanted:
            self._stop(now_s)
        while len(self._free) + self._warming < self._kept:
            self._warming += 1
            took_s = self._times.node_s + self._spread(self._times.cold_s - self._times.warm_s)
            heappush(self._events, (now_s + took_s, 0, "warm", 0))
        while len(self._free) > self._kept and now_s - self._free[0] > IDLE_NODE_S:
            self._free.popleft()

    def _start(self, now_s: float) -> None:
        warm = bool(self._free)
        if warm:
            self._free.pop()
            lead_s = self._spread(self._times.warm_s)
        else:
            lead_s = self._times.node_s + self._spread(self._times.cold_s)
            self.outcome.cold_starts += 1
        replica = self._new(warm=warm, lead_s=lead_s, now_s=now_s)
        heappush(self._events, (replica.ready_s, 0, "ready", replica.number))

    def _new(self, *, warm: bool, lead_s: float, now_s: float) -> Replica:
        self._numbers += 1
        made = Replica(self._numbers, warm, now_s, now_s + lead_s)
        self._replicas[made.number] = made
        return made

    def _ready(self, number: int) -> None:
        replica = self._replicas.get(number)
        if replica is not None:
            replica.ready = True
            tier = "warm" if replica.warm else "cold"
            self._starts[tier].append(replica.ready_s - replica.begun_s)

    def _stop(self, now_s: float) -> None:
        """The youngest of those that are not ready, else the youngest, as a ReplicaSet does."""
        chosen = max(self._replicas.values(), key=lambda each: (not each.ready, each.begun_s))
        del self._replicas[chosen.number]
        if chosen.ready or chosen.warm:
            self._free.append(now_s)

    def _spread(self, median_s: float) -> float:
        return median_s * math.exp(self._random.gauss(0.0, self._times.spread))
