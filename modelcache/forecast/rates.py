"""How fast bytes come from somewhere: the weighted median of what was seen last.

A median, so that one stalled or lucky moment does not count; weighted by how long ago each moment
was, in seconds in which bytes came: an idle night makes nothing older. A link that has changed is
another matter than one that stutters, so several moments in a row that agree with each other and
not with the median end what was known before. Without clock and I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

MOMENTS_MAX: Final = 64  # two half-lives of moments of a second
HALF_LIFE_S: Final = 30.0
"""A start of a minute is told by what that minute was like, not by last week."""
CHANGE_MOMENTS: Final = 4  # in a row; two are seen every few minutes on a busy network
CHANGE_S: Final = 3.0  # and for so long, as small pulls have short moments
CHANGE_RATIO: Final = 1.3  # nearer to the median is noise, and the median follows it anyway


@dataclass(frozen=True, slots=True)
class Moment:
    """A span in which bytes came. bytes_s above 0."""

    bytes_s: float
    seconds: float


class Rate:
    """One source's, or one disk's. Not thread-safe."""

    def __init__(self, moments: Iterable[Moment] = ()) -> None:
        self._moments: deque[Moment] = deque(maxlen=MOMENTS_MAX)
        for moment in moments:
            self.observe(moment.bytes_s * moment.seconds, moment.seconds)

    def __iter__(self) -> Iterator[Moment]:
        """What it rests on, oldest first."""
        return iter(self._moments)

    def observe(self, size_bytes: float, seconds: float) -> None:
        """So many bytes came in that time. Nothing, or no time, says nothing."""
        if size_bytes <= 0 or seconds <= 0:
            return
        self._moments.append(Moment(size_bytes / seconds, seconds))
        self._forget_before_change()

    @property
    def bytes_s(self) -> float | None:
        """Bytes a second that are to be expected; None where nothing was seen."""
        return _median(list(self._moments))

    def _forget_before_change(self) -> None:
        """Keep only what came since the link became another."""
        known = list(self._moments)
        begin, seconds = len(known), 0.0
        while begin and (len(known) - begin < CHANGE_MOMENTS or seconds < CHANGE_S):
            begin -= 1
            seconds += known[begin].seconds
        before, last = known[:begin], known[begin:]
        usual = _median(before)
        if usual is None or len(before) < len(last):
            return
        least, most = min(each.bytes_s for each in last), max(each.bytes_s for each in last)
        moved = least > usual * CHANGE_RATIO or most < usual / CHANGE_RATIO
        if moved and most <= least * CHANGE_RATIO:
            self._moments = deque(last, maxlen=MOMENTS_MAX)


def _median(moments: list[Moment]) -> float | None:
    """Weighted by each one's length, halved for every half-life since."""
    weighted = []
    age_s = 0.0
    for moment in reversed(moments):
        weighted.append((moment.bytes_s, moment.seconds * 0.5 ** (age_s / HALF_LIFE_S)))
        age_s += moment.seconds
    weighted.sort()
    half = sum(weight for _, weight in weighted) / 2
    for bytes_s, weight in weighted:
        half -= weight
        if half <= 0:
            return bytes_s
    return weighted[-1][0] if weighted else None
