"""A sorted set of chunk numbers kept as runs, so that a 140 GB blob costs a few tuples."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Intervals:
    """Disjoint, ordered, half-open `[first, end)` runs of integers."""

    __slots__ = ("_runs", "_total")

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []
        self._total = 0

    @classmethod
    def missing(cls, count: int, done: Iterable[int]) -> Intervals:
        """Numbers of `[0, count)` that are not in `done`."""
        result = cls()
        first = 0
        for number in sorted(done):
            if first < number:
                result.add(first, number)
            first = number + 1
        if first < count:
            result.add(first, count)
        return result

    def __len__(self) -> int:
        """How many numbers are in the set."""
        return self._total

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The runs in order."""
        return iter(self._runs)

    def add(self, first: int, end: int) -> None:
        """Put `[first, end)` in; numbers that are already there stay there once."""
        if first >= end:
            return
        low = bisect_left(self._runs, first, key=lambda run: run[1])
        high = low
        while high < len(self._runs) and self._runs[high][0] <= end:
            first = min(first, self._runs[high][0])
            end = max(end, self._runs[high][1])
            self._total -= self._runs[high][1] - self._runs[high][0]
            high += 1
        self._runs[low:high] = [(first, end)]
        self._total += end - first

    def discard(self, number: int) -> None:
        """Take one number out, if it is there."""
        index = bisect_left(self._runs, number + 1, key=lambda run: run[1])
        if index == len(self._runs) or self._runs[index][0] > number:
            return
        first, end = self._runs[index]
        self._runs[index : index + 1] = [
            run for run in ((first, number), (number + 1, end)) if run[0] < run[1]
        ]
        self._total -= 1

    def holds(self, number: int) -> bool:
        """Whether the number is in the set."""
        index = bisect_left(self._runs, number + 1, key=lambda run: run[1])
        return index < len(self._runs) and self._runs[index][0] <= number

    def last_ones(self, most: int) -> list[int]:
        """Up to `most` numbers, the largest first."""
        found: list[int] = []
        for first, end in reversed(self._runs):
            found.extend(reversed(range(max(first, end - most + len(found)), end)))
            if len(found) == most:
                break
        return found

    def take(self, most: int) -> tuple[int, int]:
        """Remove and return the first run, cut to `most` numbers. The set must not be empty."""
        first, end = self._runs[0]
        cut = min(end, first + most)
        self._total -= cut - first
        if cut == end:
            del self._runs[0]
        else:
            self._runs[0] = (cut, end)
        return first, cut
