"""All that is known of one model's replicas, put together: what is, what comes, what should be.

The lead time decides which recommendation holds. As long as the places that are warm are enough
for what a warm start's lead time asks for, that is it; where they are not, the next replica starts
cold, and demand has to be met for as long as that takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from modelcache.forecast.demand import Sample, quantile, slope
from modelcache.forecast.recommend import (
    SLOPE_S,
    Costs,
    ScaleUp,
    hot_spares,
    recommended_replicas,
    replicas_for,
    scale_up_cost,
    warm_slots_wanted,
)
from modelcache.forecast.slots import Place, Ready, best_ready, warm_nodes, warm_slots

STARTS_MIN: Final = 5
"""With fewer starts seen, the 90th percentile is the slowest of them; what was said counts more."""
CONFIDENT_STARTS: Final = 20
SCALE_UP_PERIOD_MAX_S: Final = 1800  # what a HorizontalPodAutoscaler takes
STABILIZATION_MAX_S: Final = 3600  # the same
STABILIZATION_MIN_S: Final = 60

Known = Literal["observed", "predicted", "declared"]


@dataclass(frozen=True, slots=True)
class Lead:
    """Seconds from a pod's binding to its being ready. starts: how many of them were seen."""

    p50_s: float
    p90_s: float
    known: Known
    confident: bool = False
    starts: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is stated of a model's server: see the schema of `ModelScale`."""

    gpus: int
    per_replica: float
    costs: Costs
    delay_s: float
    warm_s: float
    cold_s: float
    scale_up: int = 1


@dataclass(frozen=True, slots=True)
class Starting:
    """A replica that is not ready yet. age_s: since it was bound to its node."""

    warm: bool
    age_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """Durations of starts that came to their end, in seconds, newest last; and how many did not."""

    warm: Sequence[float] = ()
    cold: Sequence[float] = ()
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """See the module. None stands for what is not known."""

    rate: float | None
    slope: float
    ready: int
    starting: int
    pending: int
    warm_nodes: int
    warm_slots: int
    missing_bytes: int
    warm: Lead
    cold: Lead
    weights: Ready | None
    recommended: int | None
    spares: int | None
    slots_wanted: int | None
    scale_up: ScaleUp
    scale_up_period_s: int
    stabilization_s: int
    abandoned: int = 0

    @property
    def lead(self) -> Lead:
        """Of a replica that is begun now, at the best place there is."""
        return self.warm if self.warm_slots else self.cold


def outlook(
    asked: Asked,
    model: str,
    places: Sequence[Place],
    *,
    ready: int,
    starting: Sequence[Starting],
    samples: Sequence[Sample],
    seen: Seen,
    model_bytes: int,
    pending: int = 0,
) -> Outlook:
    """Everything at once. model: its id in `places`. samples: of demand; none where unknown.

    pending: replicas that wait for a node.

    Raises UsageError for what cannot be asked.
    """
    slots = warm_slots(places, model, asked.gpus)
    weights = best_ready(places, model)
    warm = lead_of(seen.warm, None, asked.warm_s, 0.0)
    cold = lead_of(seen.cold, _coming(places, model), asked.cold_s, warm.p50_s)
    horizons = {"warm": warm.p90_s + asked.delay_s, "cold": cold.p90_s + asked.delay_s}
    wanted = {
        tier: recommended_replicas(
            samples, horizon_s=horizon_s, costs=asked.costs, per_replica=asked.per_replica
        )
        for tier, horizon_s in horizons.items()
    }
    return Outlook(
        rate=samples[-1].rate if samples else None,
        slope=slope(samples, SLOPE_S),
        ready=ready,
        starting=len(starting),
        pending=pending,
        warm_nodes=warm_nodes(places, model),
        warm_slots=slots,
        missing_bytes=_missing(places, model),
        warm=warm,
        cold=cold,
        weights=weights,
        recommended=_kept(
            _chosen(wanted["warm"], wanted["cold"], ready + len(starting) + slots),
            asked,
            samples,
            within_s=horizons["cold"],
            ready=ready,
            coming=len(starting) + pending,
        ),
        spares=_spares(wanted["warm"], ready, starting, warm, cold),
        slots_wanted=_slots_wanted(wanted["cold"], wanted["warm"]),
        scale_up=scale_up_cost(
            asked.scale_up, slots, model_bytes, warm_s=warm.p90_s, cold_s=cold.p90_s
        ),
        scale_up_period_s=_within((warm if slots else cold).p50_s, 1, SCALE_UP_PERIOD_MAX_S),
        stabilization_s=_within(
            cold.p90_s + asked.delay_s, STABILIZATION_MIN_S, STABILIZATION_MAX_S
        ),
        abandoned=seen.abandoned,
    )


def lead_of(seen: Sequence[float], coming: Ready | None, declared_s: float, rest_s: float) -> Lead:
    """A lead time: what was observed, else what agents predict, else what was declared.

    coming: until the weights would be there. rest_s: from then on, as a warm start takes.
    """
    if len(seen) >= STARTS_MIN:
        return Lead(
            quantile(seen, 0.5),
            quantile(seen, 0.9),
            "observed",
            confident=len(seen) >= CONFIDENT_STARTS,
            starts=len(seen),
        )
    if coming is not None:
        # The rest hardly varies beside the fetch, so that its median serves for both.
        return Lead(
            coming.p50_s + rest_s,
            coming.p90_s + rest_s,
            "predicted",
            confident=coming.confident,
            starts=len(seen),
        )
    return Lead(declared_s, declared_s, "declared", starts=len(seen))


def _coming(places: Sequence[Place], model: str) -> Ready | None:
    """Until a node that lacks something of the model would have it, at the soonest."""
    lacking = [place for place in places if (held := place.models.get(model)) and not held.warm]
    return best_ready(lacking, model)


def _missing(places: Sequence[Place], model: str) -> int:
    found = (place.models.get(model) for place in places)
    return sum(held.missing_bytes or 0 for held in found if held is not None)


def _chosen(warm: int | None, cold: int | None, reachable_warm: int) -> int | None:
    if warm is None or cold is None:
        return None
    return warm if warm <= reachable_warm else max(warm, cold)


def _kept(
    recommended: int | None,
    asked: Asked,
    samples: Sequence[Sample],
    *,
    within_s: float,
    ready: int,
    coming: int,
) -> int | None:
    """Not fewer than are loading for demand that came a lead time ago: it waits for them.

    Requests that wait in a gateway come no second time, so that their rate is zero long before the
    replica that they wait for is ready. Taken back then, it would never be.
    """
    if recommended is None or not coming:
        return recommended
    since_s = samples[-1].at_s - within_s
    peak = max(each.rate for each in samples if each.at_s >= since_s)
    return max(recommended, min(ready + coming, replicas_for(peak, asked.per_replica)))


def _spares(
    wanted: int | None, ready: int, starting: Sequence[Starting], warm: Lead, cold: Lead
) -> int | None:
    if wanted is None:
        return None
    within = sum(
        1 for each in starting if (warm if each.warm else cold).p90_s - each.age_s <= warm.p90_s
    )
    return hot_spares(wanted, ready, within)


def _slots_wanted(cold: int | None, warm: int | None) -> int | None:
    return None if cold is None or warm is None else warm_slots_wanted(cold, warm)


def _within(value_s: float, least: int, most: int) -> int:
    return min(most, max(least, math.ceil(value_s)))
