"""Exact max-min fairness, to compare with: all rates rise together until one is held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from modelcache.sim.network import Flow, Link


def max_min(flows: Sequence[Flow]) -> dict[Flow, float]:
    """The rate of every flow (Bertsekas and Gallager, "Data Networks", 6.5.2)."""
    rates: dict[Flow, float] = {}
    left: dict[Link, float] = {link: link.capacity for flow in flows for link in flow.links}
    rising = list(flows)
    level = 0.0
    while rising:
        users = Counter(link for flow in rising for link in flow.links)
        step = min(
            *(left[link] / count for link, count in users.items()),
            *(flow.cap - level for flow in rising),
        )
        level += step
        for link, count in users.items():
            left[link] -= step * count
        full = {link for link in users if left[link] <= 1e-9 * link.capacity}
        held = [f for f in rising if f.cap - level <= 1e-6 or not full.isdisjoint(f.links)]
        rates |= dict.fromkeys(held, level)
        rising = [flow for flow in rising if flow not in rates]
    return rates
