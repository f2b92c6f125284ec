"""What goes wrong: how much of it (`Faults`), and, drawn by a seed, where and when (`Fates`)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Throttling:
    """The origin answers `share` of the requests of `[from_s, until_s)` with 429."""

    from_s: float
    until_s: float
    share: float = 1.0
    retry_after_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Faults:
    """Numbers of nodes, of those that fetch; no node has two of these. Times in seconds."""

    deaths: int = 0
    death_from_s: float = 5.0
    death_until_s: float = 30.0
    silent: bool = False
    """Dead nodes answer nothing, instead of having their connections reset."""
    stragglers: int = 0
    straggler_factor: float = 0.05
    """Of a node's rate up and down, what a straggler has."""
    late: int = 0
    late_from_s: float = 5.0
    late_until_s: float = 30.0
    liars: int = 0
    lie_share: float = 0.1
    """Of the chunks that a liar gives, how many are wrong."""
    throttling: tuple[Throttling, ...] = ()


@dataclass(slots=True)
class Fates:
    """Which nodes (by number) it happens to."""

    deaths: dict[int, float] = field(default_factory=dict)
    stragglers: dict[int, float] = field(default_factory=dict)
    starts: dict[int, float] = field(default_factory=dict)
    liars: dict[int, random.Random] = field(default_factory=dict)

    @classmethod
    def draw(
        cls, faults: Faults, nodes: range, start_spread_s: float, chance: random.Random
    ) -> Fates:
        """nodes: those that fetch. The first of them is spared: it may be the single seed."""
        fates = cls({}, {}, {node: chance.uniform(0.0, start_spread_s) for node in nodes}, {})
        order = list(nodes[1:])
        chance.shuffle(order)
        for _ in range(min(faults.deaths, len(order))):
            fates.deaths[order.pop()] = chance.uniform(faults.death_from_s, faults.death_until_s)
        for _ in range(min(faults.stragglers, len(order))):
            fates.stragglers[order.pop()] = faults.straggler_factor
        for _ in range(min(faults.late, len(order))):
            fates.starts[order.pop()] = chance.uniform(faults.late_from_s, faults.late_until_s)
        for _ in range(min(faults.liars, len(order))):
            fates.liars[order.pop()] = random.Random(chance.getrandbits(64))
        return fates
