"""The network: flows that share links fairly, as fluids.

A flow runs over one or more links (its sender's uplink, its receiver's downlink, perhaps a link
between two zones) at one rate until that changes. Rates are meant to be max-min fair, which is what
many TCP connections come close to over minutes; flows of other weights than 1 stand for what they
do within seconds. Start-up and losses are not modelled.

Exact max-min fairness needs a look at every flow after every change. Here each link keeps a
`level`, the rate that one flow could have if nothing else held it back, and a flow gets the lowest
level on its way (Charny, Clark and Jain, "Congestion control with explicit rate indication", 1995).
A link's level is worked out anew when its flows take more than the link can carry (by `OVER` of
its capacity), or leave free what they could use (by `FREE`), or when a quarter of its flows are
others than last time; that may change rates at other links, which are then looked at in turn. With
few flows every change counts, so they are shared exactly; with many, a change costs a few flows
instead of all of them.

The error, against the exact solution (`tests/sim/test_network.py`): all flows together get 0.96 to
1.01 of what they should, usually 0.99 to 1; a single one is seldom off by more than a tenth. A flow
costs 20 to 60 microseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from modelcache.sim.clock import Clock

OVER: Final = 1 / 128  # of a link's capacity
FREE: Final = 1 / 32  # larger, for what is free now is mostly taken by the next flow
_STALE: Final = 4  # one in so many flows may be others before a link's level is worked out anew
_SAME: Final = 1 / 128  # rates that differ by less are not worth a change
_ROUNDS_MAX: Final = 32  # links looked at after one change; what is left waits for the next
_PASSES_MAX: Final = 8  # to find a level: each pass settles all flows that want less than it
_NOTHING_BYTES: Final = 1.0  # less than that is left by rounding, and counts as arrived


class Link:
    """What shares one capacity. Bytes and bytes a second."""

    __slots__ = (
        "capacity",
        "carried",
        "changes",
        "flows",
        "full",
        "level",
        "name",
        "queued",
        "used",
    )

    def __init__(self, name: str, capacity: float) -> None:
        self.name = name
        self.capacity = capacity
        self.level = capacity
        self.used = 0.0
        self.full = False  # flows here could use more
        self.changes = 0  # flows that have come or gone since the level was worked out
        self.flows: dict[Flow, None] = {}
        self.carried = 0.0  # bytes of flows that have ended
        self.queued = False

    def unsettled(self) -> bool:
        """Whether its level should be worked out anew."""
        used, capacity = self.used, self.capacity
        if used > capacity * (1 + OVER):
            return True
        if self.full and used < capacity * (1 - FREE):
            return True
        return self.changes * _STALE > len(self.flows)


class Flow:
    """Bytes on their way from one end to another."""

    __slots__ = (
        "about",
        "arrived",
        "cap",
        "due_s",
        "left",
        "links",
        "over",
        "rate",
        "since_s",
        "size_bytes",
        "weight",
    )

    def __init__(
        self,
        links: tuple[Link, ...],
        size_bytes: int,
        cap: float,
        arrived: Callable[[Any], None],
        about: object,
        *,
        weight: float = 1.0,
    ) -> None:
        self.links = links
        self.weight = weight  # its part of a link, beside those of others
        self.size_bytes = size_bytes
        self.left = float(size_bytes)  # bytes, at `since_s`
        self.cap = cap
        self.arrived = arrived
        self.about = about
        self.rate = 0.0
        self.since_s = 0.0
        self.due_s = float("inf")  # when the clock looks at it next
        self.over = False


class Network:
    """Starts and stops flows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._unsettled: deque[Link] = deque()

    def start(
        self,
        links: tuple[Link, ...],
        size_bytes: int,
        arrived: Callable[[Any], None],
        about: object,
        *,
        cap: float = float("inf"),
        weight: float = 1.0,
    ) -> Flow:
        """Let bytes flow; `arrived(about)` is called when the last one is there.

        cap: bytes/s. weight: of links that are full it gets so many times what others get.
        """
        flow = Flow(links, size_bytes, cap, arrived, about, weight=weight)
        flow.since_s = self._clock.now_s
        rate = cap
        for link in links:
            link.flows[flow] = None
            link.changes += 1
            rate = min(rate, link.level * weight)
        self._set_rate(flow, rate)
        self._settle()
        return flow

    def stop(self, flow: Flow) -> float:
        """End a flow early; returns the bytes that had come. Harmless when it is over."""
        if not flow.over:
            gone_s = self._clock.now_s - flow.since_s
            flow.left = max(0.0, flow.left - flow.rate * gone_s)
            self._end(flow)
        return flow.size_bytes - flow.left

    def resize(self, link: Link, capacity: float) -> None:
        """Give a link another capacity from now on; its flows get the rates that follow."""
        link.capacity = capacity
        self._share(link)
        self._settle()

    def _end(self, flow: Flow) -> None:
        flow.over = True
        carried = flow.size_bytes - flow.left
        for link in flow.links:
            del link.flows[flow]
            link.carried += carried
            link.changes += 1
            link.used = link.used - flow.rate if link.flows else 0.0
            self._look_at(link)
        self._settle()

    def _due(self, flow: Flow) -> None:
        """The clock looks at a flow: it has arrived, or was slowed down meanwhile."""
        now_s = self._clock.now_s
        if flow.over or flow.due_s > now_s:
            return
        left = flow.left - flow.rate * (now_s - flow.since_s)
        if left > _NOTHING_BYTES:
            flow.due_s = now_s + left / flow.rate
            self._clock.at(flow.due_s, self._due, flow)
            return
        flow.left = 0.0
        self._end(flow)
        flow.arrived(flow.about)

    # Rates

    def _set_rate(self, flow: Flow, rate: float) -> None:
        """Change a flow's rate now; the links it takes it from are looked at later."""
        now_s = self._clock.now_s
        change = rate - flow.rate
        flow.left = max(0.0, flow.left - flow.rate * (now_s - flow.since_s))
        flow.since_s = now_s
        flow.rate = rate
        due_s = now_s + flow.left / rate
        if due_s < flow.due_s:  # one that comes too early looks again
            flow.due_s = due_s
            self._clock.at(due_s, self._due, flow)
        for link in flow.links:
            link.used += change
            self._look_at(link)

    def _look_at(self, link: Link) -> None:
        if not link.queued and link.unsettled():
            link.queued = True
            self._unsettled.append(link)

    def _settle(self) -> None:
        for _ in range(_ROUNDS_MAX):
            if not self._unsettled:
                return
            link = self._unsettled.popleft()
            link.queued = False
            if link.unsettled():
                self._share(link)

    def _share(self, link: Link) -> None:
        """Work out a link's level, and give its flows the rates that follow."""
        link.changes = 0
        flows = list(link.flows)
        if not flows:
            link.level = link.capacity
            link.full = False
            link.used = 0.0
            return
        wants = [self._want(flow, link) for flow in flows]
        level, link.full = _level(wants, [flow.weight for flow in flows], link.capacity)
        link.level = level
        link.queued = True  # not by its own changes
        for flow, want in zip(flows, wants, strict=True):
            rate = min(want, level * flow.weight)
            before = flow.rate
            if abs(rate - before) > _SAME * before:
                self._set_rate(flow, rate)
        link.queued = False
        link.used = sum(flow.rate for flow in flows)

    @staticmethod
    def _want(flow: Flow, here: Link) -> float:
        """What a flow could take if only the other links on its way held it back."""
        want = flow.cap
        for link in flow.links:
            if link is not here and link.level * flow.weight < want:
                want = link.level * flow.weight
        return want


def _level(wants: list[float], weights: list[float], capacity: float) -> tuple[float, bool]:
    """What flows of weight 1 get which want more than a link has, and whether there are any.

    Where there are none: what the greediest would get if it could use all that is left.
    """
    left, weight = capacity, sum(weights)
    level = left / weight
    greedy = list(zip(wants, weights, strict=True))
    for _ in range(_PASSES_MAX):
        modest = [each for each in greedy if each[0] <= level * each[1]]
        if not modest:
            break
        left -= sum(want for want, _ in modest)
        if len(modest) == len(greedy):
            return left + max(want / part for want, part in zip(wants, weights, strict=True)), False
        weight -= sum(part for _, part in modest)
        greedy = [each for each in greedy if each[0] > level * each[1]]
        level = left / weight
    return level, True
