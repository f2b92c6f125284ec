"""What the demand for a model does: its rate, its slope, and how much it grew within a horizon.

Samples come in the order of their times. Nothing here knows where they were read, or the time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

from modelcache.errors import UsageError

SLOPE_SAMPLES_MIN: Final = 3
SLOPE_SAMPLES_MAX: Final = 30
GAP_SPANS: Final = 3
"""Times the usual span between two samples: a longer one is a gap, in which nobody read."""
GAP_MIN_S: Final = 30.0
"""What is shorter is none: twice as far as samples of an hour lie apart where 240 are kept."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests a second that came in, as seen at a time (seconds of any one clock).

    waiting: requests that had come and were not begun; 0 where nobody counts them.
    """

    at_s: float
    rate: float
    waiting: float = 0.0


def rate_between(before: float, after: float, elapsed_s: float) -> float | None:
    """Events a second of a counter; after a restart it counts from zero. None without a span."""
    if elapsed_s <= 0:
        return None
    grown = after - before if after >= before else after
    return max(0.0, grown) / elapsed_s


def growths(samples: Sequence[Sample], horizon_s: float) -> list[float]:
    """By how much the rate differed a horizon later, for each sample that has a later one.

    One whose horizon ends in a gap has none: the next sample is from much later, and what the rate
    grew by until then it did not grow by within a horizon.
    """
    if not samples:
        return []
    times = [each.at_s for each in samples]
    late_s = _gap_s(times)
    found = []
    for each in samples:
        then_s = each.at_s + horizon_s
        later = bisect_left(times, then_s)
        if later == len(samples):
            break
        if times[later] - then_s <= late_s:
            found.append(samples[later].rate - each.rate)
    return found


def slope(samples: Sequence[Sample], window_s: float) -> float:
    """How fast the rate changes, per second: as two thirds of all pairs in the last `window_s` do.

    0 where there are fewer than three samples. Ranks of the slopes of pairs (as of Theil and Sen's
    estimator, doi 10.1080/01621459.1968.10480934) follow a ramp as least squares would, and do not
    take a step for one: demand that has doubled at once need not go on doubling. The median would,
    in the moment in which the step is in the middle of the window, when a little more than half of
    the pairs stand on both sides of it; two thirds never do.
    """
    if not samples:
        return 0.0
    times = [each.at_s for each in samples]
    last = samples[bisect_right(times, samples[-1].at_s - window_s) :]
    # Evenly thinned, the newest among them; pairs grow with the square.
    thinned = last[:: -max(1, math.ceil(len(last) / SLOPE_SAMPLES_MAX))]
    slopes = [
        (later.rate - before.rate) / (later.at_s - before.at_s)
        for later, before in combinations(thinned, 2)
        if later.at_s > before.at_s
    ]
    return quantile(slopes, 1 / 3) if len(thinned) >= SLOPE_SAMPLES_MIN and slopes else 0.0


def _gap_s(times: Sequence[float]) -> float:
    """How far samples may be apart without a gap between them. times: one at least."""
    spans = [after - before for before, after in pairwise(times)]
    return max(GAP_MIN_S, GAP_SPANS * quantile(spans, 0.5)) if spans else GAP_MIN_S


def quantile(values: Sequence[float], level: float) -> float:
    """The smallest value that at least `level` of all do not exceed. Raises UsageError."""
    if not values or not 0 <= level <= 1:
        raise UsageError("a quantile needs values, and a level between 0 and 1")
    ordered = sorted(values)
    # A level such as 0.9 is a little off as a float, which must not cost a whole rank.
    return ordered[max(0, math.ceil(level * len(ordered) - 1e-9) - 1)]
