"""Small scenarios: 2 GiB in 16 MiB chunks, between nodes that are quick to simulate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelcache.domain.ranges import MIB
from modelcache.sim import Faults, ModelShape, OriginShape, Outcome, Scenario, simulate

MODEL = ModelShape(blobs=4, blob_bytes=512 * MIB, chunk_bytes=16 * MIB)
SLOW_ORIGIN = OriginShape(rate=500e6)


def small(nodes: int, **changes: Any) -> Scenario:
    """A scenario of a few nodes."""
    return replace(Scenario(nodes, model=MODEL, origin=SLOW_ORIGIN), **changes)


def troubled(nodes: int, seed: int = 0, **faults: Any) -> Scenario:
    """The same, with faults while it runs."""
    base = {"death_from_s": 1.0, "death_until_s": 4.0, "late_from_s": 1.0, "late_until_s": 6.0}
    return small(nodes, seed=seed, faults=Faults(**(base | faults)))


def whole(scenario: Scenario) -> Outcome:
    """Run it; everybody who lived must have everything."""
    outcome = simulate(scenario)
    assert not outcome.gave_up, f"seed {scenario.seed}: {outcome.gave_up}"
    assert outcome.whole(), f"seed {scenario.seed}"
    return outcome
