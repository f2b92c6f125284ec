"""The simulator's studies: how long until the last of N nodes has 140 GB, and what that costs.

Everything here is virtual time, so the machine decides only how long a study takes. Runs of one
study go on beside each other, one on each processor. 5,000 nodes are two zones; their cells share
nothing but the origin, so each zone is a run of its own with half of the origin's rate.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final

from modelcache.domain.ranges import MIB
from modelcache.sim import (
    GBIT,
    Faults,
    ModelShape,
    NodeShape,
    OriginShape,
    Outcome,
    Scenario,
    Throttling,
    Way,
    alone_s,
    bound_s,
    cells_bound_s,
    cells_of,
    simulate,
)

SEED: Final = 1
PERCENTILES: Final = tuple(range(0, 101, 2))
CELL: Final = 64
ORIGIN: Final = OriginShape(rate=500 * GBIT)
FINE: Final = ModelShape(chunk_bytes=16 * MIB)
COARSE: Final = ModelShape(blobs=15, blob_bytes=9_333_333_333, chunk_bytes=128 * MIB)
COARSER: Final = replace(COARSE, chunk_bytes=256 * MIB)
QUICK_NODES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table. parts: scenarios that add up to it."""

    study: str
    label: str
    whole: Scenario
    parts: tuple[Scenario, ...]
    cost: float
    """How long it takes, compared with others: the longest are begun first."""


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Run all studies. quick: none of more than `QUICK_NODES_MAX` nodes."""
    cases = [*_scale(), *_regimes(), *_failures(), *_scale_out()]
    if quick:
        cases = [case for case in cases if case.whole.nodes <= QUICK_NODES_MAX]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures: dict[tuple[int, int], Future[tuple[Outcome, float]]] = {}
        for number in sorted(range(len(cases)), key=lambda number: -cases[number].cost):
            for part, scenario in enumerate(cases[number].parts):
                futures[number, part] = pool.submit(_run, scenario)
        commit = _commit()
        return [
            _summary(
                case, [futures[number, part].result() for part in range(len(case.parts))], commit
            )
            for number, case in enumerate(cases)
        ]


def _run(scenario: Scenario) -> tuple[Outcome, float]:
    """One run, in a process of its own."""
    gc.disable()  # a run makes no rubbish that refers to itself, and millions of objects
    started_s = perf_counter()
    outcome = simulate(scenario)
    wall_s = perf_counter() - started_s
    gc.enable()
    gc.collect()
    told = f"  {scenario.way} of {scenario.nodes}: {outcome.last_s:.0f} s in {wall_s:.0f} s"
    print(told, file=sys.stderr, flush=True)
    return outcome, wall_s


# Studies


def _coarse(nodes: int, *, model: ModelShape = COARSE, **changes: Any) -> Scenario:  # noqa: ANN401
    """A scenario of many nodes, where one chunk stands for 8 or 16 of production.

    A chunk takes longer to come, so it is waited for longer; and what goes astray while nodes still
    get to know each other is fewer chunks, but larger ones, so that time is shorter.
    """
    base = Scenario(nodes, SEED, model=model, origin=ORIGIN)
    factor = model.chunk_bytes / FINE.chunk_bytes
    scaled = replace(
        base,
        wait_s=base.wait_s * factor,
        start_spread_s=base.start_spread_s / factor,
        refresh_s=base.refresh_s if nodes <= CELL else 0.0,
    )
    return replace(scaled, **changes)


def _scale() -> list[Case]:
    """More and more nodes at one origin."""
    ten = Scenario(10, SEED, model=FINE, origin=ORIGIN)
    cases = [
        _case("scale", f"{base.nodes}", replace(base, way=way))
        for base in (ten, _coarse(64), _coarse(256))
        for way in Way
    ]
    cases += [_case("scale", "1000", _coarse(1000, way=way)) for way in (Way.SWARM, Way.ALONE)]
    whole = _coarse(5000, model=COARSER, zones=2)
    half = replace(whole, nodes=2500, zones=1, origin=replace(ORIGIN, rate=ORIGIN.rate / 2))
    cases.append(_case("scale", "5000", whole, (half, replace(half, seed=SEED + 1))))
    return cases


def _regimes() -> list[Case]:
    """One cell where peers are all there is, and one where they are hardly worth asking."""
    slow = _coarse(CELL, origin=OriginShape(rate=10 * GBIT))
    fast = _coarse(CELL, origin=OriginShape(rate=4000 * GBIT))
    narrow = replace(fast, node=NodeShape(up=2.5 * GBIT, down=25 * GBIT))
    # A trial of some seconds is a matter of production's chunks: larger ones take as long to come.
    fine = Scenario(16, SEED, model=FINE, origin=narrow.origin, node=narrow.node)
    return [
        _case("regimes", label, replace(scenario, way=way))
        for label, scenario in (
            ("origin 10 Gbit/s, nodes 25", slow),
            ("origin 4 Tbit/s, nodes 25 down, 2.5 up", narrow),
            ("origin 4 Tbit/s, 16 nodes 25 down, 2.5 up", fine),
            ("origin 4 Tbit/s, nodes 25", fast),
        )
        for way in Way
    ]


def _failures() -> list[Case]:
    """One cell with an origin of 25 Gbit/s, and what goes wrong there."""
    throttling = (Throttling(10.0, 20.0, share=0.8),)
    faults = {
        "nothing": Faults(),
        "a node dies at 20 s": Faults(deaths=1, death_from_s=20, death_until_s=20),
        "a node dies silently at 20 s": Faults(
            deaths=1, death_from_s=20, death_until_s=20, silent=True
        ),
        "3 nodes at a twentieth of the rate": Faults(stragglers=3),
        "16 nodes come at 10 to 40 s": Faults(late=16, late_from_s=10, late_until_s=40),
        "429 for 80 % at 10 to 20 s": Faults(throttling=throttling),
        "2 nodes give wrong chunks": Faults(liars=2, lie_share=0.02),
        "all of that": Faults(
            deaths=1, stragglers=3, late=16, liars=2, lie_share=0.02, throttling=throttling
        ),
    }
    base = _coarse(CELL, origin=OriginShape(rate=25 * GBIT))
    return [_case("failures", label, replace(base, faults=each)) for label, each in faults.items()]


def _scale_out() -> list[Case]:
    """Nodes that come when others have the model already; the origin gives 10 Gbit/s."""
    origin = OriginShape(rate=10 * GBIT)
    cell = _coarse(CELL, origin=origin)
    eight = Scenario(8, SEED, model=FINE, origin=origin)
    return [
        _case("scale-out", f"{holders} of {base.nodes} have it", replace(base, holders=holders))
        for base, most in ((cell, range(5)), (eight, (1, 4)))
        for holders in most
    ]


def _case(study: str, label: str, whole: Scenario, parts: Sequence[Scenario] = ()) -> Case:
    chunks = whole.fetchers * whole.model.size_bytes / whole.model.chunk_bytes
    cost = chunks / max(1, len(parts)) * (4 if whole.way is Way.SWARM else 1)
    return Case(study, label, whole, tuple(parts) or (whole,), cost)


# Numbers


def _summary(case: Case, runs: Sequence[tuple[Outcome, float]], commit: str) -> dict[str, Any]:
    """What is kept of a case: plain numbers, in seconds and bytes."""
    scenario = case.whole
    outcomes = [outcome for outcome, _ in runs]
    nodes = [node for outcome in outcomes for node in outcome.nodes]
    size_bytes = scenario.model.size_bytes
    by_cell = [read for outcome in outcomes for read in outcome.origin_by_cell()]
    return {
        "study": case.study,
        "label": case.label,
        "way": str(scenario.way),
        "commit": commit,
        "nodes": scenario.nodes,
        "seeds": [part.seed for part in case.parts],
        "size_bytes": size_bytes,
        "chunk_bytes": scenario.model.chunk_bytes,
        "refresh_s": scenario.refresh_s,
        "cells": cells_of(scenario),
        "bound_s": bound_s(scenario),
        "cells_bound_s": cells_bound_s(scenario),
        "alone_s": alone_s(scenario),
        "last_s": max(outcome.last_s for outcome in outcomes),
        "last_quick_s": max(outcome.last_quick_s for outcome in outcomes),
        "took_s": _percentiles([n.ready_s - n.started_s for n in nodes if n.ready_s is not None]),
        "origin_bytes": sum(by_cell),
        "origin_bytes_cell_max": max(by_cell),
        "sent": _percentiles([node.sent for node in nodes]),
        "sent_by_holders": sum(outcome.sent_by_holders for outcome in outcomes),
        "wasted_bytes": sum(outcome.wasted_bytes for outcome in outcomes),
        "hedges": sum(outcome.hedges for outcome in outcomes),
        "audits": sum(outcome.audits for outcome in outcomes),
        "quarantines": sum(outcome.quarantines for outcome in outcomes),
        "lies_found": sum(outcome.lies_found for outcome in outcomes),
        "failures": _sum([outcome.failures for outcome in outcomes]),
        "gave_up": len([name for outcome in outcomes for name in outcome.gave_up]),
        "events": sum(outcome.events for outcome in outcomes),
        "planned": sum(outcome.planned for outcome in outcomes),
        "wall_s": sum(wall_s for _, wall_s in runs),
    }


def _percentiles(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return [round(ordered[round(last * percent / 100)], 3) for percent in PERCENTILES]


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for code, count in each.items():
            total[code] = total.get(code, 0) + count
    return dict(sorted(total.items()))


def _commit() -> str:
    """What reproduces these runs, with their seeds."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"
