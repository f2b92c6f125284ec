"""What the demand for a model does: its rate, its slope, and how much it grew within a horizon.

Samples come in the order of their times. Nothing here knows where they were read, or the time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests a second that came in, as seen at a time (seconds of any one clock)."""

    at_s: float
    rate: float


def rate_between(before: float, after: float, elapsed_s: float) -> float | None:
    """Events a second of a counter; after a restart it counts from zero. None without a span."""
    if elapsed_s <= 0:
        return None
    grown = after - before if after >= before else after
    return max(0.0, grown) / elapsed_s


def growths(samples: Sequence[Sample], horizon_s: float) -> list[float]:
    """By how much the rate differed a horizon later, for each sample that has a later one."""
    times = [each.at_s for each in samples]
    found = []
    for each in samples:
        later = bisect_left(times, each.at_s + horizon_s)
        if later == len(samples):
            break
        found.append(samples[later].rate - each.rate)
    return found


def slope(samples: Sequence[Sample], window_s: float) -> float:
    """How fast the rate changes, per second, by least squares over the last `window_s`.

    0 where one sample, or none, is all there is.
    """
    if not samples:
        return 0.0
    times = [each.at_s for each in samples]
    last = samples[bisect_right(times, samples[-1].at_s - window_s) :]
    mean_s = sum(each.at_s for each in last) / len(last)
    mean = sum(each.rate for each in last) / len(last)
    spread = sum((each.at_s - mean_s) ** 2 for each in last)
    if spread <= 0:
        return 0.0
    return sum((each.at_s - mean_s) * (each.rate - mean) for each in last) / spread


def quantile(values: Sequence[float], level: float) -> float:
    """The smallest value that at least `level` of all do not exceed. Raises UsageError."""
    if not values or not 0 <= level <= 1:
        raise UsageError("a quantile needs values, and a level between 0 and 1")
    ordered = sorted(values)
    # A level such as 0.9 is a little off as a float, which must not cost a whole rank.
    return ordered[max(0, math.ceil(level * len(ordered) - 1e-9) - 1)]
