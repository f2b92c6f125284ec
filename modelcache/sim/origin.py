"""The simulated origin: a total rate, a rate for each connection, a first byte that takes time."""

from __future__ import annotations

import random

from modelcache.sim.clock import Clock
from modelcache.sim.faults import Throttling
from modelcache.sim.network import Link
from modelcache.sim.scenario import OriginShape


class Origin:
    """See the module."""

    def __init__(
        self,
        shape: OriginShape,
        throttling: tuple[Throttling, ...],
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self.shape = shape
        self.link = Link("origin", shape.rate)
        self.requests = 0
        self.refused = 0
        self._throttling = throttling
        self._clock = clock
        self._chance = chance

    def refusal_s(self) -> float | None:
        """A request has come: None if it is answered, else its Retry-After."""
        self.requests += 1
        now_s = self._clock.now_s
        for throttling in self._throttling:
            if throttling.from_s <= now_s < throttling.until_s:
                if self._chance.random() < throttling.share:
                    self.refused += 1
                    return throttling.retry_after_s
                return None
        return None
