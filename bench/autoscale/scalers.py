"""Those that are compared: a HorizontalPodAutoscaler on requests, or on what we recommend.

What is recommended comes from the package's own formulas (`modelcache.forecast`), fed as the scaler
feeds them. The autoscaler's algorithm is written down as Kubernetes documents it: a tolerance of a
tenth, at most 100 % or 4 pods more every 15 s, and the highest wish of the last minutes for going
down. It cannot see that replicas load.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from bench.autoscale.world import CARRIES, SERVICE_S, SYNC_S, Seen
from modelcache.forecast import outlook as forecast
from modelcache.forecast.demand import Sample
from modelcache.forecast.recommend import Costs
from modelcache.forecast.slots import Held, Place

TOLERANCE: Final = 0.1
UP_PODS: Final = 4
DOWN_S: Final = 300
USE: Final = 0.7  # of what a replica can have in flight, that the autoscaler aims at
OBJECTIVE_USE: Final = 0.85  # of what a replica can carry, that it carries within its objective
SAMPLE_EVERY: Final = 1  # syncs
HISTORY: Final = 240
KEPT: Final = 200


class _Down:
    """The highest wish of the last seconds."""

    def __init__(self) -> None:
        self._wishes: deque[tuple[float, int]] = deque()

    def __call__(self, now_s: float, wish: int, window_s: float) -> int:
        self._wishes.append((now_s, wish))
        while now_s - self._wishes[0][0] > window_s:
            self._wishes.popleft()
        return max(each for _, each in self._wishes)


class OnRequests:
    """On requests in flight, waiting ones among them, with the default behavior."""

    def __init__(self, keep_warm: int = 0) -> None:
        """keep_warm: nodes that somebody has declared to be kept warm."""
        self._down = _Down()
        self._keep_warm = keep_warm

    def decide(self, seen: Seen) -> tuple[int, int]:
        """See Scaler."""
        have = len(seen.replicas)
        target = CARRIES * SERVICE_S * USE
        wish = math.ceil(seen.in_flight / target)
        if have and abs(seen.in_flight / (target * have) - 1) <= TOLERANCE:
            wish = have
        held = self._down(seen.now_s, wish, DOWN_S)
        most = max(2 * have, have + UP_PODS)
        return min(most, max(wish, min(have, held))), self._keep_warm


@dataclass(frozen=True, slots=True)
class Error:
    """Of the lead times that are believed: a factor, and a spread of its logarithm."""

    factor: float = 1.0
    spread: float = 0.0


class Recommended:
    """What we recommend, as it is; with warm places as we want them, or without any."""

    def __init__(
        self, *, keep_warm: bool, costs: Costs, error: Error | None = None, seed: int = 0
    ) -> None:
        self._keep_warm = keep_warm
        self._asked = forecast.Asked(
            gpus=1,
            per_replica=CARRIES * OBJECTIVE_USE,
            costs=costs,
            delay_s=2.0 * SYNC_S,
            warm_s=60,
            cold_s=600,
        )
        self._error = error or Error()
        self._random = random.Random(seed)
        self._samples: deque[Sample] = deque(maxlen=HISTORY)
        self._arrived = 0
        self._syncs = 0
        self._down = _Down()
        self._down_kept = _Down()

    def decide(self, seen: Seen) -> tuple[int, int]:
        """See Scaler."""
        if self._syncs % SAMPLE_EVERY == 0:
            rate = (seen.arrived - self._arrived) / (SYNC_S * SAMPLE_EVERY)
            if self._syncs:
                self._samples.append(Sample(seen.now_s, rate, seen.waiting))
            self._arrived = seen.arrived
        self._syncs += 1
        ready = sum(each.ready for each in seen.replicas)
        found = forecast.outlook(
            self._asked,
            "m",
            [Place(str(n), 1, models={"m": Held(warm=True)}) for n in range(seen.warm_free)],
            ready=ready,
            starting=[
                forecast.Starting(each.warm, seen.now_s - each.begun_s)
                for each in seen.replicas
                if not each.ready
            ],
            samples=list(self._samples),
            seen=forecast.Seen(self._believed(seen, "warm"), self._believed(seen, "cold")),
            model_bytes=0,
        )
        have = len(seen.replicas)
        if found.recommended is None:
            return have, 0
        wish = found.recommended
        held = self._down(seen.now_s, wish, found.stabilization_s)
        kept = self._down_kept(seen.now_s, found.slots_wanted or 0, found.stabilization_s)
        return max(wish, min(have, held)), kept if self._keep_warm else 0

    def _believed(self, seen: Seen, tier: str) -> list[float]:
        return [
            each * self._error.factor * math.exp(self._random.gauss(0.0, self._error.spread))
            for each in seen.starts[tier][-KEPT:]
        ]
