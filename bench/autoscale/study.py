"""Each shape of traffic, each way of scaling, several seeds; and errors of the estimator."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from bench.autoscale.scalers import Error, OnRequests, Recommended
from bench.autoscale.traffic import DAY_S, SHAPES, arrivals
from bench.autoscale.world import Outcome, Scaler, Times, World
from modelcache.forecast.recommend import Costs

SEEDS: Final = (1, 2, 3)
COSTS: Final = Costs(late=9, idle=1)
REQUESTS: Final = "HPA on requests, cold nodes"
REQUESTS_WARM: Final = "HPA on requests, 4 nodes kept warm"
OURS_COLD: Final = "HPA on our recommendation, cold nodes"
OURS: Final = "HPA on our recommendation, warm places as recommended"
OURS_EAGER: Final = "the same, late 49 times as bad as idle"
EAGER: Final = Costs(late=49, idle=1)
WAYS: Final[dict[str, Callable[[int], Scaler]]] = {
    REQUESTS: lambda _: OnRequests(),
    REQUESTS_WARM: lambda _: OnRequests(4),
    OURS_COLD: lambda seed: Recommended(keep_warm=False, costs=COSTS, seed=seed),
    OURS: lambda seed: Recommended(keep_warm=True, costs=COSTS, seed=seed),
    OURS_EAGER: lambda seed: Recommended(keep_warm=True, costs=EAGER, seed=seed),
}
ERRORS: Final = {
    "half": Error(0.5),
    "three quarters": Error(0.75),
    "exact": Error(),
    "spread by 30 %": Error(1.0, 0.3),
    "half more": Error(1.5),
    "double": Error(2.0),
}


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """All runs, as JSON values. quick: one seed, and a third of a day."""
    seeds, day_s = (SEEDS[:1], DAY_S // 3) if quick else (SEEDS, DAY_S)
    cases = [
        ("ways", shape, way, seed, day_s) for shape in SHAPES for way in WAYS for seed in seeds
    ]
    cases += [
        ("errors", shape, name, seed, day_s)
        for shape in SHAPES
        for name in ERRORS
        for seed in seeds[:2]
    ]
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(_run, cases))


def _run(case: tuple[str, str, str, int, int]) -> dict[str, Any]:
    study, shape, name, seed, day_s = case
    if study == "ways":
        scaler = WAYS[name](seed)
    else:
        scaler = Recommended(keep_warm=True, costs=COSTS, error=ERRORS[name], seed=seed)
    outcome = World(arrivals(shape, seed, day_s), scaler, Times(), seed).run()
    found = {"study": study, "shape": shape, "way": name, "seed": seed, "day_s": day_s}
    found.update(_told(outcome))
    if study == "ways" and seed == SEEDS[0]:
        found["replicas"], found["ready"] = outcome.replicas[::5], outcome.ready[::5]
    return found


def _told(outcome: Outcome) -> dict[str, Any]:
    episodes = sorted(outcome.episodes)
    return {
        "requests": outcome.requests,
        "late": outcome.late,
        "late_share": round(outcome.late / max(1, outcome.requests), 5),
        "replica_h": round(outcome.replica_s / 3600, 2),
        "node_h": round(outcome.node_s / 3600, 2),
        "cold_starts": outcome.cold_starts,
        "most_replicas": outcome.most_replicas,
        "episodes": len(episodes),
        "recover_p50_s": _quantile(episodes, 0.5),
        "recover_p90_s": _quantile(episodes, 0.9),
        "late_s": round(sum(episodes)),
    }


def _quantile(ordered: list[float], level: float) -> float:
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(level * len(ordered)) - 1)]
