"""How a simulated node answers its peers.

A chunk that it may pass on goes out at once. For another the request waits, for a bounded time,
and the node's own planner is told that it is wanted.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from modelcache.planner import ChunkWanted, Failure, Remedy
from modelcache.sim.attempts import Attempt
from modelcache.sim.network import Link
from modelcache.sim.shelf import Copy

if TYPE_CHECKING:
    from modelcache.sim.node import Node

_RESET: Final = Failure(Remedy.RETRY, "connection_reset")
_STALLED: Final = Failure(Remedy.RETRY, "stalled")
_NOT_HELD: Final = Failure(Remedy.REFUSED, "not_held")
_NOT_YET: Final = Failure(Remedy.NOT_YET, "not_yet")


class Server:
    """The peer plane of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._sending: dict[Attempt, None] = {}
        self.lies: random.Random | None = None

    def asked(self, attempt: Attempt) -> None:
        """A request has come."""
        node = self._node
        if attempt.over:
            return
        if not node.alive:
            self._dead(attempt)
            return
        copies = [node.copies.get(blob) for blob, _ in attempt.chunks[attempt.place :]]
        copy = copies[0]
        if copy is None or (copy.grid.count == 1 and not all(c and c.complete for c in copies)):
            attempt.node.reader.fail(attempt, _NOT_HELD)
        elif copy.offers(attempt.chunk):
            self._send(attempt, copy)
        else:
            copy.waiting.setdefault(attempt.chunk, {})[attempt] = None
            scenario = node.site.scenario
            node.site.clock.after(scenario.wait_s, self._waited, (attempt, attempt.place))
            node.feed(ChunkWanted(copy.blob, attempt.chunk))

    def stored(self, copy: Copy, chunk: int) -> None:
        """A chunk can be passed on now."""
        for attempt in copy.release(chunk):
            self._send(attempt, copy)

    def completed(self, copy: Copy) -> None:
        """So can all of them."""
        for attempt in copy.release_all():
            self._send(attempt, copy)

    def forget(self, attempt: Attempt) -> None:
        """An attempt is over: nothing more is sent to it."""
        self._sending.pop(attempt, None)
        if attempt.place < len(attempt.chunks):
            copy = self._node.copies.get(attempt.blob)
            waiting = copy.waiting.get(attempt.chunk) if copy is not None else None
            if waiting is not None:
                waiting.pop(attempt, None)

    def die(self) -> None:
        """All connections break; or, if the node dies silently, nothing more comes by them."""
        node = self._node
        broken = list(self._sending)
        for copy in node.copies.values():
            broken += copy.release_all()
        self._sending.clear()
        for attempt in broken:
            self._dead(attempt)

    def _dead(self, attempt: Attempt) -> None:
        node = self._node
        if not node.site.scenario.faults.silent:
            node.site.clock.after(0.0, self._break, (attempt, _RESET))
            return
        if attempt.flow is not None:
            node.site.network.stop(attempt.flow)
        node.site.clock.after(node.site.scenario.stall_s, self._break, (attempt, _STALLED))

    @staticmethod
    def _break(about: tuple[Attempt, Failure]) -> None:
        attempt, failure = about
        attempt.node.reader.fail(attempt, failure)

    def _waited(self, about: tuple[Attempt, int]) -> None:
        attempt, place = about
        if attempt.over or attempt.place != place or attempt.flow is not None:
            return
        if self._node.alive:
            attempt.node.reader.fail(attempt, _NOT_YET)

    def _send(self, attempt: Attempt, copy: Copy) -> None:
        asker = attempt.node
        self._sending[attempt] = None
        attempt.false = attempt.chunk in copy.wrong or self._lies()
        links: tuple[Link, ...] = (self._node.up, asker.down)
        if asker.zone != self._node.zone and asker.zone_links and self._node.zone_links:
            links += (self._node.zone_links[0], asker.zone_links[1])
        asker.reader.receive(attempt, links)

    def _lies(self) -> bool:
        share = self._node.site.scenario.faults.lie_share
        return self.lies is not None and self.lies.random() < share
