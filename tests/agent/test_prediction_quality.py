"""Whether predictions come true: an agent's knowledge, fed by transfers in virtual time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from modelcache.agent.foresight.knowledge import Knowledge
from modelcache.agent.measuring import Measuring
from modelcache.forecast.estimate import Needs, Regime, Speeds

ORIGIN = "https://origin"
MB = 10**6
STARTS = 240
TICK_S = 0.25
RATES = {
    Regime.ALONE: 400 * MB,
    Regime.TOGETHER: 900 * MB,
    Regime.HELD: 1500 * MB,
    Regime.CROWDED: 1100 * MB,
}
AROUND = {
    Regime.ALONE: (0, 0),
    Regime.TOGETHER: (0, 3),
    Regime.HELD: (2, 0),
    Regime.CROWDED: (1, 1),
}
SHARES = {Regime.ALONE: 1.0, Regime.TOGETHER: 0.3, Regime.HELD: 0.0, Regime.CROWDED: 0.0}
"""Of the origin."""


class Life:
    """One agent that starts models, one after the other, over links that fluctuate."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.measuring = Measuring()
        self.knowledge = Knowledge(Path("/nowhere"), self.measuring, Speeds())
        self.now_s = 1000.0

    def start(self, *, slowdown: float, gives_up: bool) -> None:
        regime = self.chance.choice(list(Regime))
        size = self.chance.randint(2_000, 40_000) * MB
        holders, fetchers = AROUND[regime]
        needs = Needs(size, size, holders=holders, fetchers=fetchers, resolved=True)
        prediction = self.knowledge.predict("m", needs, ORIGIN)
        began_s = self.now_s
        if prediction is not None:
            self.knowledge.freeze("w", "m", prediction, began_s)
        rate = RATES[regime] / slowdown * self.chance.lognormvariate(0.0, 0.08)
        self._transfer(regime, size * (0.3 if gives_up else 1.0), rate)
        self.now_s += self.chance.uniform(0.2, 0.6)  # checksums, syncs
        opened = self.knowledge.end("w", self.now_s, finished=not gives_up)
        if opened is not None and not gives_up:
            wall_s = self.now_s - began_s
            self.knowledge.fetched(opened, ORIGIN, resolving_s=0.1, wall_s=wall_s)
        self.now_s += 5.0

    def _transfer(self, regime: Regime, size: float, rate: float) -> None:
        """Half as fast in its first second; stutters now and then."""
        came, began_s = 0.0, self.now_s
        while came < size:
            self._tell(regime, came)
            pace = 0.5 if self.now_s - began_s < 1.0 else self.chance.choice([1.0] * 19 + [0.2])
            step_s = min(TICK_S, (size - came) / (rate * pace))
            came += rate * pace * step_s
            self.now_s += step_s
        self._tell(regime, came)
        self.measuring.rests("w", self.now_s)

    def _tell(self, regime: Regime, came: float) -> None:
        share = SHARES[regime]
        sources = {f"{ORIGIN}/m": int(came * share), "peer:n2": int(came * (1 - share))}
        self.measuring.moved("w", sources, self.now_s)


@pytest.mark.parametrize("seed", range(3))
def test_half_of_the_speed_and_kills_in_the_middle_leave_predictions_honest(seed: int):
    life = Life(seed)
    for number in range(STARTS):
        slowdown = 1.0 if number < STARTS // 2 else 2.0
        life.start(slowdown=slowdown, gives_up=number % 20 == 19)
    standing = life.knowledge.standing()
    assert standing.starts == 200
    assert standing.abandoned == 10
    assert standing.error is not None
    assert standing.error < 0.15
    covered = standing.coverage[0.9]
    assert covered is not None
    assert 0.85 <= covered <= 0.95
    assert standing.confident


def test_the_first_start_of_a_cold_agent_is_not_predicted():
    life = Life(0)
    life.start(slowdown=1.0, gives_up=False)
    assert life.knowledge.standing().starts == 0
    life.start(slowdown=1.0, gives_up=False)
    assert life.knowledge.standing().starts == 1
