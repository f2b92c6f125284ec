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
_PROBE_STEP: Final = 8  # probe with one eighth more


class Concurrency:
    """The limit of one source. Feed it finished work; read `limit`."""

    __slots__ = (
        "_base_limit",
        "_base_rate",
        "_limits",
        "_starting",
        "_windows",
        "_work",
        "limit",
    )

    def __init__(self, limits: PlannerLimits) -> None:
        self._limits = limits
        self.limit = min(limits.connections_start, limits.connections_max)
        self._base_limit = self.limit  # the last number known to pay
        self._base_rate = 0.0  # work per second at `_base_limit`
        self._starting = True
        self._windows = 0
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

    def leap(self) -> None:
        """Try all there may be at once; what does not pay is taken back as after any probe."""
        self._work = None
        self._try(self._limits.connections_max)

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
