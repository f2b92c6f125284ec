"""The chunks of one blob that wait to be fetched, in lots: one for each source that should give it.

The lot ORIGIN is for whatever origin the blob has. A chunk stands in one lot only; when peers come
and go the chunks concerned are moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from modelcache.planner.events import SourceId
from modelcache.planner.intervals import Intervals

ORIGIN: Final = SourceId("")
Assign = Callable[[int], SourceId]


class Lots:
    """Pending chunks. `assign` says to which lot a chunk belongs now."""

    __slots__ = ("_assign", "_lots", "_total", "_where")

    def __init__(self, pending: Intervals) -> None:
        self._assign: Assign | None = None
        self._lots: dict[SourceId, Intervals] = {ORIGIN: pending}
        self._where: list[SourceId | None] = []  # by chunk; while all are ORIGIN's, not kept
        self._total = len(pending)

    def __len__(self) -> int:
        """Chunks that wait, in all lots."""
        return self._total

    def share(self, count: int, assign: Assign) -> None:
        """From now on let `assign` choose the lots. count: chunks of the blob."""
        waiting = [chunk for first, end in self._lots[ORIGIN] for chunk in range(first, end)]
        self._assign = assign
        self._where = [None] * count
        self._lots = {ORIGIN: Intervals()}
        self._total = 0
        for chunk in waiting:
            self._put(chunk)

    def sources(self) -> list[SourceId]:
        """Lots with something in them."""
        return [source for source, lot in self._lots.items() if len(lot)]

    def count(self, source: SourceId) -> int:
        """Chunks that wait in one lot."""
        lot = self._lots.get(source)
        return len(lot) if lot is not None else 0

    def add(self, first: int, end: int) -> None:
        """Let chunks `[first, end)` wait; those that do already are left where they are."""
        if self._assign is None:
            lot = self._lots[ORIGIN]
            lot.add(first, end)
            self._total = len(lot)
            return
        for chunk in range(first, end):
            if self._where[chunk] is None:
                self._put(chunk)

    def discard(self, chunk: int) -> None:
        """A chunk waits no more, if it did."""
        if self._assign is None:
            lot = self._lots[ORIGIN]
            lot.discard(chunk)
            self._total = len(lot)
            return
        where = self._where[chunk]
        if where is not None:
            self._lots[where].discard(chunk)
            self._where[chunk] = None
            self._total -= 1

    def waits(self, chunk: int) -> bool:
        """Whether a chunk is in one of the lots."""
        if self._assign is None:
            return self._lots[ORIGIN].holds(chunk)
        return self._where[chunk] is not None

    def lot_of(self, chunk: int) -> SourceId:
        """The lot that a waiting chunk stands in."""
        where = self._where[chunk] if self._assign is not None else ORIGIN
        assert where is not None, "it waits"  # noqa: S101
        return where

    def take(self, source: SourceId, most: int) -> tuple[int, int]:
        """Remove and return the first run of a lot, cut to `most`. The lot must not be empty."""
        first, end = self._lots[source].take(most)
        self._took(first, end)
        return first, end

    def last_ones(self, source: SourceId, most: int) -> list[int]:
        """Up to `most` chunks of a lot, the last first."""
        lot = self._lots.get(source)
        return lot.last_ones(most) if lot is not None else []

    def move(self, chunks: Iterable[int]) -> None:
        """Assign those of these chunks anew that wait."""
        assign = self._assign
        assert assign is not None, "shared"  # noqa: S101
        for chunk in chunks:
            where = self._where[chunk]
            if where is not None and (now := assign(chunk)) != where:
                self._lots[where].discard(chunk)
                self._lots.setdefault(now, Intervals()).add(chunk, chunk + 1)
                self._where[chunk] = now

    def _put(self, chunk: int) -> None:
        assert self._assign is not None, "shared"  # noqa: S101
        where = self._where[chunk] = self._assign(chunk)
        self._lots.setdefault(where, Intervals()).add(chunk, chunk + 1)
        self._total += 1

    def _took(self, first: int, end: int) -> None:
        self._total -= end - first
        if self._assign is not None:
            self._where[first:end] = [None] * (end - first)
