"""How many replicas a model should have now, so that few requests find none ready.

A replica that is asked for now serves after its lead time: until the weights are ready (L), and
until somebody notices and acts (D). So what counts is not the demand of now but that of then,
which is uncertain. Whoever has too few replicas then pays for late requests, whoever has too many
pays for idle ones; the least expected cost is at the quantile

    level = cost of being late / (cost of being late + cost of idling)

of what demand may be: the newsvendor's critical fractile (Arrow, Harris, Marschak: Optimal
Inventory Policy, Econometrica 19, 1951). How demand may grow is taken from how it grew over spans
of that length. Set-up times of servers are nearly deterministic, so that formulas of queues with
exponential ones would mislead (doi 10.1145/3570617).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelcache.errors import UsageError
from modelcache.forecast.demand import Sample, growths, quantile, slope

GROWTHS_MIN: Final = 20
"""With fewer, a quantile such as 0.95 is the largest value seen; the slope says more."""
SLOPE_S: Final = 60.0
"""A shorter window follows the noise of single requests, a longer one is late on a burst."""
DRAIN_MIN_S: Final = 15.0
"""What waits is not to be gone sooner, however soon a replica would be ready."""
SLOPE_MAX_S: Final = 300.0
"""The further ahead, the further back, but a ramp that began five minutes ago is one by now."""
REPLICAS_MAX: Final = 100_000  # far above what a cluster has; what is above is a mistake of units


@dataclass(frozen=True, slots=True)
class Costs:
    """Of a replica too few and of one too many, for the same time; only their ratio matters."""

    late: float
    idle: float

    @property
    def level(self) -> float:
        """The critical fractile. Raises UsageError."""
        if not (self.late > 0 and self.idle > 0 and math.isfinite(self.late + self.idle)):
            raise UsageError("the costs of being late and of idling are numbers above 0")
        return self.late / (self.late + self.idle)


def replicas_for(rate: float, per_replica: float) -> int:
    """Replicas that carry `rate` requests a second. Raises UsageError."""
    if not (per_replica > 0 and math.isfinite(per_replica)):
        raise UsageError("the requests a second that a replica carries are a number above 0")
    if not math.isfinite(rate):
        raise UsageError("the demand is not a number")
    return min(REPLICAS_MAX, max(0, math.ceil(rate / per_replica - 1e-9)))


def growth_within(samples: Sequence[Sample], horizon_s: float, level: float) -> float:
    """Requests a second that may come on top within the horizon; never below 0. samples: some.

    What is asked for now has to be served now, so that a fall is no reason for fewer. It is the
    more of two: a quantile of how it grew within such spans, which needs a history; and the slope
    of now, for a ramp that is under way stands in no span that is over. A slope counts at most as
    much as demand did grow within the last horizon: a few seconds of it say nothing of the next ten
    minutes.
    """
    last = samples[-1]
    least = min(each.rate for each in samples if each.at_s >= last.at_s - horizon_s)
    window_s = min(SLOPE_MAX_S, max(SLOPE_S, horizon_s))
    ramp = min(slope(samples, window_s) * horizon_s, last.rate - least)
    seen = growths(samples, horizon_s)
    usual = quantile(seen, level) if len(seen) >= GROWTHS_MIN else 0.0
    return max(0.0, ramp, usual)


def recommended_replicas(
    samples: Sequence[Sample], *, horizon_s: float, costs: Costs, per_replica: float
) -> int | None:
    """Replicas to have, or None where no demand is known. horizon_s: L + D. Raises UsageError.

    What waits is to be gone by the time that a replica which is begun now would be ready: with just
    enough for what comes, it would wait for ever.
    """
    if not samples:
        return None
    rate, waiting = samples[-1].rate, max(0.0, samples[-1].waiting)
    growth = growth_within(samples, horizon_s, costs.level) if rate > 0 else 0.0
    return replicas_for(rate + growth + waiting / max(DRAIN_MIN_S, horizon_s), per_replica)


def hot_spares(recommended_warm: int, ready: int, ready_within_lead: int) -> int:
    """Replicas to start now. ready_within_lead: those that load, and will be ready in time."""
    return max(0, recommended_warm - ready - ready_within_lead)


def warm_slots_wanted(recommended_cold: int, recommended_warm: int) -> int:
    """Places to keep warm with no replica: what a cold start would have to begin earlier."""
    return max(0, recommended_cold - recommended_warm)


def lead_time_load(rate: float, slope_now: float, ready_s: float, capacity: float) -> float:
    """Load by the time a replica begun now would serve; 1 is full. Raises UsageError.

    capacity: requests a second that all replicas carry together.
    """
    if capacity <= 0:
        raise UsageError("a load needs a capacity above 0")
    return max(0.0, rate + max(slope_now, 0.0) * max(ready_s, 0.0)) / capacity


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """What k more replicas would cost. seconds: until the last is ready, None if unknown."""

    origin_bytes: int
    seconds: float | None


def scale_up_cost(
    replicas: int, warm_slots: int, model_bytes: int, *, warm_s: float | None, cold_s: float | None
) -> ScaleUp:
    """What k more take: those with a warm place read nothing; the others share one read."""
    cold = max(0, replicas - warm_slots)
    if replicas <= 0:
        return ScaleUp(0, 0.0)
    return ScaleUp(model_bytes, cold_s) if cold else ScaleUp(0, warm_s)
