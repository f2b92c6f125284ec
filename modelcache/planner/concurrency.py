"""How many attempts to keep in flight at one source, found by measuring.

Like BBR's start-up (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016): double
while doubling pays; when it stops paying go back to the last number that did, then probe a little
upwards now and then. A throttled source halves the number. Throughput is judged over windows long
enough for several chunks of every connection, or noise would decide.
"""

from __future__ import annotations

from typing import Final

from modelcache.planner.limits import PlannerLimits

_START_GAIN: Final = 1.25  # doubling must bring a quarter more to be worth it
_PROBE_GAIN: Final = 1.05  # an eighth more connections must bring at least this
_PROBE_EVERY_WINDOWS: Final = 8
_ROOM: Final = 0.85  # of what one connection has brought: less, and the source is at its limit
_PROBE_STEP: Final = 8  # probe with one eighth more


class Concurrency:
    """The limit of one source. Feed it finished work; read `limit`."""

    __slots__ = (
        "_base_limit",
        "_base_rate",
        "_best_each",
        "_busy_s",
        "_limits",
        "_starting",
        "_windows",
        "_work",
        "has_room",
        "limit",
    )

    def __init__(self, limits: PlannerLimits) -> None:
        self._limits = limits
        self.limit = min(limits.connections_start, limits.connections_max)
        self._base_limit = self.limit  # the last number known to pay
        self._base_rate = 0.0  # work per second at `_base_limit`
        self._starting = True
        self._windows = 0
        # Whether others leave some of a shared source: more connections brought as much each.
        self.has_room: bool | None = None
        self._best_each = 0.0  # bytes a second of one connection
        self._busy_s = 0.0  # of the connections that did the work
        self._work: tuple[float, int] | None = None  # (window start, work done in it)

    def done(
        self,
        size_bytes: int,
        chunk_bytes: int,
        now_s: float,
        *,
        saturated: bool,
        requests: int = 1,
    ) -> None:
        """Count finished work. saturated: the limit, not a lack of work, held attempts back."""
        if self._work is None or not saturated:
            self._work = (now_s, 0)
            return
        start_s, work = self._work
        work += size_bytes + requests * self._limits.request_cost_bytes
        self._work = (start_s, work)
        one = min(size_bytes // requests, chunk_bytes)
        enough = max(self._limits.window_min_bytes, 2 * self.limit * one)
        if now_s - start_s >= self._limits.window_min_s and work >= enough:
            self._work = (now_s, 0)
            self._judge(work / (now_s - start_s))

    def done_shared(
        self, size_bytes: int, seconds: float, chunk_bytes: int, now_s: float, connections: int
    ) -> None:
        """The same where others share the source, and `connections` are this node's part of it.

        Judged is what one connection brings. While that is as much as ever, the source has room:
        twice as many. When it is less, all there is has been given out, and who took more would
        only take it from the others: back to an even part. seconds: that this work took.
        """
        if self._work is None:
            self._work = (now_s, 0)
            self._busy_s = 0.0
            return
        start_s, work = self._work
        work += size_bytes
        self._work = (start_s, work)
        self._busy_s += seconds
        enough = max(self._limits.window_min_bytes, 2 * connections * chunk_bytes)
        if now_s - start_s < self._limits.window_min_s or work < enough:
            return
        rate = work / self._busy_s
        self._work = (now_s, 0)
        self._busy_s = 0.0
        known = self._best_each > 0  # the first window only tells what there is to compare with
        self._best_each = max(self._best_each, rate)
        if not known:
            return
        if rate < _ROOM * self._best_each:
            self.has_room = False
            self._windows = 0
            self.limit = max(self._limits.connections_start, self.limit // 2)
            return
        self._windows += 1
        if self.has_room is False and self._windows < _PROBE_EVERY_WINDOWS:
            return  # the last time there was none
        if self._windows > 1:  # one good window is what it was before
            self.has_room = True
        self.limit = min(2 * self.limit, self._limits.connections_max)

    def throttled(self) -> None:
        """The source asked for less."""
        self.limit = max(1, self.limit // 2)
        self._base_limit = self.limit
        self._base_rate = 0.0
        self._starting = False
        self._windows = 0
        self._work = None

    def _judge(self, rate: float) -> None:
        gain = _START_GAIN if self._starting else _PROBE_GAIN
        if self.limit > self._base_limit:  # the window tried more
            if rate >= self._base_rate * gain:
                self._settle(self.limit, rate)
            else:
                self._starting = False
                self._settle(self._base_limit, self._base_rate)
                return
        else:
            self._settle(self.limit, rate)
        self._windows += 1
        if self._starting:
            self._try(self.limit * 2)
        elif self._windows >= _PROBE_EVERY_WINDOWS:
            self._windows = 0
            self._try(self.limit + max(1, self.limit // _PROBE_STEP))

    def _settle(self, limit: int, rate: float) -> None:
        self.limit = self._base_limit = limit
        self._base_rate = rate

    def _try(self, limit: int) -> None:
        self.limit = min(limit, self._limits.connections_max)
