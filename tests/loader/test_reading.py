from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from modelcache.errors import SourceUnavailable
from modelcache.loader.dtypes import DTYPES
from modelcache.loader.header import Tensor
from modelcache.loader.memory import Memory, anonymous
from modelcache.loader.plan import REGION_BYTES_MAX, Piece, Region, regions
from modelcache.loader.reading import Reading
from modelcache.loader.slicing import Choice

MIB = 1 << 20


class Arriving:
    """A file of a number for each MiB, of which only what was said to be there can be read."""

    def __init__(self, here: int) -> None:
        self.here = here
        self.failing: Exception | None = None
        self.bytes_read = 0
        self.full = threading.Event()  # as much was read as a window holds

    def ready(self, piece: Piece) -> bool:
        if self.failing:
            raise self.failing
        return piece.end <= self.here

    def read(self, piece: Piece, into: memoryview) -> None:
        assert piece.end <= self.here
        for at in range(0, len(into), MIB):
            number = (piece.start + at) // MIB % 251
            into[at : at + MIB] = bytes([number]) * min(MIB, len(into) - at)
        self.bytes_read += len(into)
        if self.bytes_read >= 60 * MIB:
            self.full.set()

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        raise NotImplementedError


class Ledger:
    """Allocates, and knows what of it somebody still holds."""

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = 0
        self._lock = threading.Lock()

    def allocate(self, size_bytes: int) -> Memory:
        memory = anonymous(size_bytes)
        with self._lock:
            self.live_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(memory.owner, self._freed, size_bytes)
        return memory

    def _freed(self, size_bytes: int) -> None:
        with self._lock:
            self.live_bytes -= size_bytes


def laid_out(count: int, size_bytes: int, file: int = 0) -> list[Region]:
    parts = [
        Choice().part(Tensor(f"{file}.{n}", DTYPES["U8"], (size_bytes,), at, at + size_bytes))
        for n in range(count)
        for at in (n * size_bytes,)
    ]
    return list(regions(file, parts))


@contextmanager
def reading(
    files: list[Arriving], plan: list[Region], ledger: Ledger, window_bytes: int | None
) -> Iterator[Reading]:
    started = Reading(files, plan, threads=3, allocate=ledger.allocate, window_bytes=window_bytes)
    with started as entered:
        yield entered


@pytest.mark.parametrize("in_order", [True, False])
def test_memory_stays_within_the_window_and_goes_with_its_tensors(in_order: bool) -> None:
    plan = laid_out(20, 24 * MIB)
    ledger = Ledger()
    with reading([Arriving(20 * 24 * MIB)], plan, ledger, 2 * REGION_BYTES_MAX) as under_way:
        tensors = under_way.in_order() if in_order else under_way.as_they_come()
        count = 0
        for filled in tensors:
            count += 1
            assert filled.memory.view[filled.place] < 251
            del filled
        assert count == 20
    del under_way, tensors
    assert ledger.peak_bytes <= 3 * REGION_BYTES_MAX, "one more may wait for its memory's end"
    assert ledger.live_bytes == 0


def test_what_comes_first_is_given_first() -> None:
    late, here = Arriving(0), Arriving(40 * MIB)
    plan = laid_out(2, 20 * MIB, 0) + laid_out(2, 20 * MIB, 1)
    with reading([late, here], plan, Ledger(), None) as under_way:
        tensors = under_way.as_they_come()
        first = [next(tensors) for _ in range(2)]
        assert {plan[filled.region].file for filled in first} == {1}
        late.here = 40 * MIB
        assert {plan[filled.region].file for filled in tensors} == {0}


def test_later_files_that_are_here_cannot_lock_out_the_one_that_is_next() -> None:
    late, here = Arriving(0), Arriving(400 * MIB)
    plan = laid_out(2, 60 * MIB, 0) + laid_out(6, 60 * MIB, 1)
    with reading([late, here], plan, Ledger(), REGION_BYTES_MAX) as under_way:
        tensors = under_way.in_order()
        assert here.full.wait(30), "the window is full of what comes later"
        late.here = 120 * MIB
        assert [plan[filled.region].file for filled in tensors] == [0] * 2 + [1] * 6


def test_what_goes_wrong_while_waiting_is_raised_to_the_consumer() -> None:
    late = Arriving(0)
    with reading([late], laid_out(2, MIB), Ledger(), None) as under_way:
        late.failing = SourceUnavailable("gone")
        with pytest.raises(SourceUnavailable, match="gone"):
            next(under_way.in_order())


def test_each_byte_is_read_once() -> None:
    file = Arriving(50 * MIB)
    plan = laid_out(50, MIB)
    with reading([file], plan, Ledger(), None) as under_way:
        for filled in under_way.as_they_come():
            part = plan[filled.region].parts[filled.part]
            wanted = bytes([part.start // MIB]) * MIB
            assert filled.memory.view[filled.place : filled.place + MIB] == wanted
    assert file.bytes_read == 50 * MIB
