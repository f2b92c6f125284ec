"""How a simulated node carries out attempts: asks, waits, receives, stores.

An answer's first byte takes a round trip, or what the origin needs; from then on a flow carries one
chunk after another.
"""

from __future__ import annotations

import random
from math import exp, inf
from typing import TYPE_CHECKING, Final

from modelcache.planner import (
    AttemptEnded,
    AttemptFailed,
    AttemptId,
    BatchStored,
    ChunkAudited,
    ChunkStored,
    Failure,
    Fetch,
    Remedy,
    peer_of,
)
from modelcache.sim.attempts import Attempt
from modelcache.sim.network import Link

if TYPE_CHECKING:
    from modelcache.sim.node import Node

_CANCELLED: Final = Failure(Remedy.CANCELLED, "cancelled")


class Reader:
    """The attempts of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._site = node.site
        self._open: dict[AttemptId, Attempt] = {}
        scenario = node.site.scenario
        self._chance = random.Random(f"{scenario.seed}/{node.name}")
        self._fortune = exp(self._chance.gauss(0, scenario.uneven_nodes))

    # What the planner orders

    def begin(self, fetch: Fetch) -> None:
        """Start an attempt."""
        node = self._node
        name = peer_of(fetch.source)
        server = None if name is None else node.peers[name]
        attempt = Attempt(node, fetch, server, self._site.clock.now_s)
        self._open[fetch.attempt] = attempt
        node.tally.hedges += fetch.hedge
        node.tally.audits += fetch.audit
        self._ask(attempt)

    def cancel(self, number: AttemptId) -> None:
        """End an attempt; the planner hears of it afterwards."""
        attempt = self._open.get(number)
        if attempt is not None:
            self._close(attempt)
            self._site.clock.after(0.0, self._node.feed, AttemptFailed(number, _CANCELLED))

    def curtail(self, number: AttemptId) -> None:
        """End an attempt after the chunk that is on its way."""
        if number in self._open:
            self._open[number].curtailed = True

    def stop(self) -> None:
        """End all attempts; the planner is not told."""
        for attempt in list(self._open.values()):
            self._close(attempt)

    # One attempt

    def _ask(self, attempt: Attempt) -> None:
        """Send a request. The way there and back is counted before it arrives."""
        scenario = self._site.scenario
        attempt.since_s = self._site.clock.now_s
        if attempt.fetch.serve and not attempt.fetch.audit:
            for blob, chunk in attempt.chunks[attempt.place :]:
                self._node.copies[blob].reading[chunk] = None
        if attempt.server is None:
            trips = -(-len(attempt.chunks) // attempt.fetch.lanes) if self._small(attempt) else 1
            self._site.clock.after(trips * scenario.origin.first_byte_s, self._answered, attempt)
        else:
            near = attempt.server.zone == self._node.zone
            trip_s = scenario.node.round_trip_s if near else scenario.node.zone_round_trip_s
            self._site.clock.after(trip_s, attempt.server.server.asked, attempt)

    def _answered(self, attempt: Attempt) -> None:
        """By the origin."""
        if attempt.over:
            return
        after_s = self._site.origin.refusal_s()
        if after_s is not None:
            self.fail(attempt, Failure(Remedy.THROTTLED, "throttled", after_s))
            return
        self.receive(attempt, (self._site.origin.link, self._node.down))

    def receive(self, attempt: Attempt, links: tuple[Link, ...]) -> None:
        """The answer to an attempt begins to arrive."""
        attempt.first_byte_s = self._site.clock.now_s - attempt.since_s
        cap = inf
        if attempt.server is None:
            cap = self._site.scenario.origin.connection_rate * attempt.fetch.lanes
        attempt.flow = self._site.network.start(
            links,
            self._size_bytes(attempt),
            self._arrived,
            attempt,
            cap=cap,
            weight=self._weight(attempt),
        )

    def _weight(self, attempt: Attempt) -> float:
        """How this connection fares beside others; see `Scenario.uneven`."""
        scenario = self._site.scenario
        weight = self._fortune if attempt.server is None else 1.0
        return weight * exp(self._chance.gauss(0, scenario.uneven)) if scenario.uneven else weight

    def _arrived(self, attempt: Attempt) -> None:
        """The last byte of a chunk, or of a batch, is here."""
        self._count(attempt)
        attempt.flow = None
        if self._small(attempt):
            self._store_batch(attempt)
        else:
            self._store_chunk(attempt)
        if attempt.over:
            return  # cancelled by what the planner made of it
        if attempt.curtailed or attempt.place == len(attempt.chunks):
            self._close(attempt)
            self._node.feed(AttemptEnded(attempt.fetch.attempt, attempt.first_byte_s))
        elif attempt.server is None and attempt.blob == attempt.chunks[attempt.place - 1][0]:
            self.receive(attempt, (self._site.origin.link, self._node.down))
        else:
            self._ask(attempt)

    def _store_chunk(self, attempt: Attempt) -> None:
        node = self._node
        blob, chunk = attempt.chunks[attempt.place]
        number = attempt.fetch.attempt
        copy = node.copies[blob]
        copy.reading.pop(chunk, None)
        attempt.place += 1
        if attempt.fetch.audit:
            node.tally.wasted += copy.grid.span(chunk).size_bytes
            if attempt.fetch.serve:
                same = copy.vouch(chunk)
                node.server.stored(copy, chunk)
            else:
                same = not attempt.false and chunk not in copy.wrong
                attempt.false = False
            node.feed(ChunkAudited(number, blob, chunk, same))
            return
        if not copy.store(chunk, served=attempt.fetch.serve, wrong=attempt.false):
            node.tally.wasted += copy.grid.span(chunk).size_bytes
        attempt.false = False
        if copy.served[chunk]:
            node.server.stored(copy, chunk)
        node.feed(ChunkStored(number, blob, chunk))

    def _store_batch(self, attempt: Attempt) -> None:
        node = self._node
        blobs = tuple(blob for blob, _ in attempt.chunks)
        attempt.place = len(attempt.chunks)
        fresh = tuple(blob for blob in blobs if not node.copies[blob].complete)
        for blob in fresh:
            node.copies[blob].complete = True
            node.let_go(blob)
        node.feed(BatchStored(attempt.fetch.attempt, blobs))
        node.teller.announce(fresh)

    def fail(self, attempt: Attempt, failure: Failure) -> None:
        """An attempt ends early, by no doing of ours."""
        if attempt.over:
            return
        node = self._node
        blob = attempt.blob if failure.remedy is Remedy.REFUSED else None
        self._close(attempt)
        node.tally.failures[failure.code] = node.tally.failures.get(failure.code, 0) + 1
        node.feed(AttemptFailed(attempt.fetch.attempt, failure, blob))

    def _close(self, attempt: Attempt) -> None:
        """End an attempt, whatever it was doing."""
        attempt.over = True
        del self._open[attempt.fetch.attempt]
        for blob, chunk in attempt.chunks[attempt.place :]:
            self._node.copies[blob].reading.pop(chunk, None)
        if attempt.server is not None:
            attempt.server.server.forget(attempt)
        if attempt.flow is not None:
            self._node.tally.wasted += self._site.network.stop(attempt.flow)
            self._count(attempt)

    # Sizes

    def _small(self, attempt: Attempt) -> bool:
        grid = self._node.copies[attempt.chunks[0][0]].grid
        return grid.count == 1 and grid.size_bytes <= self._site.scenario.limits.batch_blob_bytes

    def _size_bytes(self, attempt: Attempt) -> int:
        """Of the next answer: one chunk, or a whole batch of small blobs."""
        copies = self._node.copies
        if self._small(attempt):
            return sum(copies[blob].grid.size_bytes for blob, _ in attempt.chunks)
        return copies[attempt.blob].grid.span(attempt.chunk).size_bytes

    def _count(self, attempt: Attempt) -> None:
        """The bytes of a flow that is over."""
        flow = attempt.flow
        if flow is None:
            return
        came = flow.size_bytes - flow.left
        if attempt.server is None:
            self._node.tally.from_origin += came
        else:
            self._node.tally.from_peers += came
            attempt.server.tally.sent += came
