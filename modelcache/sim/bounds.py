"""What no way of distributing can be faster than, in the fluid limit."""

from __future__ import annotations

from modelcache.domain.members import CELL_MEMBERS_MAX
from modelcache.sim.scenario import Scenario


def bound_s(scenario: Scenario) -> float:
    """Until the last node has everything: T >= max(S/(C+H), S/b, N*S/(C+H+U)).

    S: the model, C: the origin's rate, b: a node's downlink, N: nodes that fetch, U and H: the
    uplinks of those, and of those that have everything already (Kumar and Ross, "Peer-assisted
    file distribution: the minimum distribution time", 2006).
    """
    return _bound_s(scenario, scenario.fetchers, scenario.holders, scenario.origin.rate)


def cells_bound_s(scenario: Scenario) -> float:
    """The same where nothing passes between cells: each has its part of the origin's rate."""
    cells = cells_of(scenario)
    return _bound_s(
        scenario,
        scenario.fetchers / cells,
        scenario.holders / cells,
        scenario.origin.rate / cells,
    )


def alone_s(scenario: Scenario) -> float:
    """If every node reads the origin: S / min(b, C/N)."""
    rate = min(scenario.node.down, scenario.origin.rate / scenario.fetchers)
    return scenario.model.size_bytes / rate


def cells_of(scenario: Scenario) -> int:
    """How many cells the nodes form."""
    in_zone = -(-scenario.nodes // scenario.zones)
    return scenario.zones * -(-in_zone // CELL_MEMBERS_MAX)


def _bound_s(scenario: Scenario, fetchers: float, holders: float, origin: float) -> float:
    size_bytes, up = scenario.model.size_bytes, scenario.node.up
    first = origin + holders * up
    return max(
        size_bytes / first,
        size_bytes / scenario.node.down,
        fetchers * size_bytes / (first + fetchers * up),
    )
