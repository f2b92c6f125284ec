"""How far truth is from what was predicted, and quantiles that follow from it.

Each start was predicted by one number. What matters is the ratio truth / prediction of the last
starts: its quantiles, times a new prediction, are the new prediction's. A start that was given up
has no truth, only a time that it was not ready within: it counts as *censored*, by the
product-limit estimate (Kaplan and Meier, 1958); dropping it would make the slow ones disappear.

A median of few ratios is a guess itself, and for a while after a link has changed it is about the
link before. So the middle of a prediction is moved only where starts say clearly that it is beside
the truth: a sign test (Conover, "Practical Nonparametric Statistics", 1999, 3.4). Moved always, the
error of predictions was a tenth to a third larger, on hosts and simulated.

Conditions change, so a quantile may come true too seldom or too often. Adaptive conformal inference
(Gibbs and Candès, NeurIPS 2021) moves the level that is asked for after every start, so that over
time it is right as often as it says. Without clock and I/O.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, Final

from modelcache.forecast.estimate import Regime, Tier

STARTS_MAX: Final = 200
LEVELS: Final = (0.5, 0.9)
GROUP_MIN: Final = 10  # the least with which the 90th of a hundred is not simply the largest
STEP: Final = 0.03
"""Of the level after a start: a p90 that is missed twice in a row asks for 5 points more."""
BOUNDS: Final = {0.5: (0.3, 0.7), 0.9: (0.8, 0.99)}
BIAS_STARTS_MAX: Final = 32  # the last ones; about as many as have come since a change
BIAS_CHANCE: Final = 0.05  # below which it is no chance that so many starts took longer, or less
UNKNOWN_SPREAD: Final = {0.5: 1.0, 0.9: 2.0}  # before any start has told
CONFIDENT_MIN: Final = 20  # starts, below which a coverage says nothing
COVERAGE: Final = (0.85, 0.95)  # of a p90 that is what it says
NAME_MAX: Final = 128
SECONDS_MIN: Final = 0.01  # below which a ratio is noise of clocks


@dataclass(frozen=True, slots=True)
class Promise:
    """A prediction as it stood when a start began. predicted_s: before any quantile."""

    model: str
    tier: Tier
    regime: Regime
    predicted_s: float
    p50_s: float
    p90_s: float

    def at(self, level: float) -> float:
        """The quantile of a level of LEVELS."""
        return self.p50_s if level == LEVELS[0] else self.p90_s


@dataclass(frozen=True, slots=True)
class Start:
    """What became of it. seconds: until it was ready, or until it was given up."""

    promise: Promise
    seconds: float
    finished: bool

    @property
    def ratio(self) -> float:
        """Truth by prediction, or what that is more than."""
        return max(self.seconds, SECONDS_MIN) / max(self.promise.predicted_s, SECONDS_MIN)

    def within(self, level: float) -> bool | None:
        """Whether it was ready by then; None where nobody will know."""
        if self.seconds > self.promise.at(level):
            return False
        return True if self.finished else None


class Score:
    """The last starts of a node. Not thread-safe."""

    def __init__(self) -> None:
        self._starts: deque[Start] = deque(maxlen=STARTS_MAX)
        self._asked = {level: level for level in LEVELS}

    def __iter__(self) -> Iterator[Start]:
        """Oldest first."""
        return iter(self._starts)

    def add(self, start: Start) -> None:
        """Learn from a start that is over."""
        self._starts.append(start)
        if start.promise.tier is Tier.WARM:
            return  # nothing was fetched: it says nothing of how well fetching is predicted
        for level in LEVELS:
            within = start.within(level)
            if within is None:
                continue
            least, most = BOUNDS[level]
            moved = self._asked[level] + STEP * (level - within)
            self._asked[level] = min(most, max(least, moved))

    def factors(self, model: str, tier: Tier, regime: Regime) -> dict[float, float]:
        """What to multiply a prediction by, for each level: of the model, else of all like it."""
        for alike in self._groups(model, tier, regime):
            starts = [start for start in self._starts if alike(start.promise)]
            if sum(start.finished for start in starts) >= GROUP_MIN:
                middle, high = LEVELS
                last = starts[-BIAS_STARTS_MAX:]
                usual = _quantile(last, self._asked[middle]) if _biased(last) else 1.0
                return {middle: usual, high: max(usual, _quantile(starts, self._asked[high]))}
        return dict(UNKNOWN_SPREAD)

    @staticmethod
    def _groups(model: str, tier: Tier, regime: Regime) -> tuple[Callable[[Promise], bool], ...]:
        """From the nearest to the widest. A warm start is like no other."""

        def alike(promise: Promise) -> bool:
            return (promise.tier is Tier.WARM) == (tier is Tier.WARM)

        return (
            lambda promise: alike(promise) and promise.model == model and promise.regime is regime,
            lambda promise: alike(promise) and promise.regime is regime,
            alike,
        )

    # Of itself

    @property
    def fetched(self) -> list[Start]:
        """Starts in which something was fetched, oldest first: what the score is about."""
        return [start for start in self._starts if start.promise.tier is not Tier.WARM]

    def coverage(self, level: float) -> float | None:
        """How often a start was ready by the quantile; None where no start can tell."""
        told = [within for each in self.fetched if (within := each.within(level)) is not None]
        return sum(told) / len(told) if told else None

    @property
    def error(self) -> float | None:
        """Median of how far the p50 was from the truth, as a share of the truth."""
        errors = [
            abs(each.promise.p50_s - each.seconds) / max(each.seconds, SECONDS_MIN)
            for each in self.fetched
            if each.finished
        ]
        return median(errors) if errors else None

    @property
    def confident(self) -> bool:
        """Whether the p90 has come true as often as it should."""
        covered = self.coverage(LEVELS[1])
        enough = len(self.fetched) >= CONFIDENT_MIN
        return enough and covered is not None and COVERAGE[0] <= covered <= COVERAGE[1]

    # Kept

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "asked": [self._asked[level] for level in LEVELS],
            "starts": [
                [*promise_to_json(each.promise), round(each.seconds, 4), each.finished]
                for each in self._starts
            ],
        }

    @classmethod
    def from_json(cls, plain: Any) -> Score:  # noqa: ANN401 - JSON
        """Inverse of `to_json`. Raises KeyError, TypeError, ValueError for what is none."""
        score = cls()
        for level, asked in zip(LEVELS, plain["asked"], strict=True):
            least, most = BOUNDS[level]
            score._asked[level] = min(most, max(least, seconds_of(asked)))
        for values in plain["starts"][-STARTS_MAX:]:
            *promise, seconds, finished = values
            score._starts.append(
                Start(promise_of_json(promise), seconds_of(seconds), bool(finished))
            )
        return score


def promise_to_json(promise: Promise) -> list[Any]:
    """Plain values, in the order of the fields."""
    values = [getattr(promise, item.name) for item in fields(promise)]
    return [round(each, 4) if isinstance(each, float) else str(each) for each in values]


def promise_of_json(values: Any) -> Promise:  # noqa: ANN401 - JSON
    """Inverse of `promise_to_json`. Raises TypeError, ValueError."""
    model, tier, regime, *numbers = values
    predicted_s, p50_s, p90_s = map(seconds_of, numbers)
    return Promise(str(model)[:NAME_MAX], Tier(tier), Regime(regime), predicted_s, p50_s, p90_s)


def seconds_of(value: Any) -> float:  # noqa: ANN401 - JSON
    """A number that is one, and not below 0. Raises TypeError, ValueError."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{number} is no time")
    return number


def _biased(starts: Sequence[Start]) -> bool:
    """Whether starts say that predictions of the like are too long, or too short."""
    told = [start for start in starts if start.finished or start.ratio > 1]
    longer = sum(start.ratio > 1 for start in told)
    shorter = sum(start.ratio < 1 for start in told)
    count = longer + shorter
    chance = 2 * sum(math.comb(count, few) for few in range(min(longer, shorter) + 1)) / 2**count
    return bool(chance < BIAS_CHANCE)


def _quantile(starts: Sequence[Start], level: float) -> float:
    """The smallest ratio by which at least that share of starts was ready.

    One that was given up leaves those that wait at the time it was given up. The level is of n + 1
    starts, as in conformal prediction: the next one is not among those seen.
    """
    ordered = sorted(starts, key=lambda start: (start.ratio, not start.finished))
    wanted = min(1.0, level * (len(ordered) + 1) / len(ordered))
    waiting, left = 1.0, len(ordered)
    for start in ordered:
        if start.finished:
            waiting *= 1 - 1 / left
            if 1 - waiting >= wanted - 1e-9:
                return start.ratio
        left -= 1
    return ordered[-1].ratio
