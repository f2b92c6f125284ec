"""What is remembered of starts, as values, and as they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelcache.forecast.calibration import (
    Promise,
    promise_of_json,
    promise_to_json,
    seconds_of,
)
from modelcache.forecast.estimate import Needs, Parts


@dataclass(frozen=True, slots=True)
class Prediction:
    """When a model would be ready. Quantiles are of `parts.ready_s`, and with loading of that.

    measured: whether it rests on what was measured, or on what the settings declare. confident:
    whether such predictions have come true as often as they say.
    """

    needs: Needs
    parts: Parts
    p50_s: float
    p90_s: float
    loaded_p50_s: float | None
    loaded_p90_s: float | None
    measured: bool
    confident: bool


@dataclass(frozen=True, slots=True)
class Open:
    """A start that is not over. began_at_s: seconds since the epoch."""

    promise: Promise
    needs: Needs
    began_at_s: float


@dataclass(slots=True)
class Histogram:
    """Counts up to each bound, and above them all."""

    bounds: tuple[float, ...]
    counts: Counter[int] = field(default_factory=Counter)
    total: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        place = next((n for n, most in enumerate(self.bounds) if value <= most), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def cumulative(self) -> list[float]:
        """Counts up to each bound; the last is of all."""
        found, so_far = [], 0
        for place in range(len(self.bounds) + 1):
            so_far += self.counts[place]
            found.append(float(so_far))
        return found


@dataclass(frozen=True, slots=True)
class Standing:
    """The score at one moment, for metrics and people."""

    starts: int
    finished: int
    abandoned: int
    coverage: Mapping[float, float | None]
    error: float | None
    confident: bool


def open_to_json(opened: Open) -> dict[str, Any]:
    """Plain values."""
    needs = opened.needs
    return {
        "promise": promise_to_json(opened.promise),
        "needs": [needs.size_bytes, needs.missing_bytes, needs.holders, needs.fetchers],
        "began_at_s": opened.began_at_s,
    }


def open_of_json(plain: Any) -> Open:  # noqa: ANN401 - JSON
    """Inverse of `open_to_json`. Raises KeyError, TypeError, ValueError."""
    size, missing, holders, fetchers = (max(0, int(each)) for each in plain["needs"])
    return Open(
        promise_of_json(plain["promise"]),
        Needs(size, missing, holders=holders, fetchers=fetchers),
        seconds_of(plain["began_at_s"]),
    )
