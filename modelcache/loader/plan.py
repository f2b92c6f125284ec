"""Which pieces of which files are read into which memory. Pure.

Wanted parts that lie side by side in a file share a *region* of memory, which has the file's bytes
at the same distance from a page boundary as the file: so a direct read of whole pages lands at its
final place, and a tensor is a view into its region. A part that is scattered over the file, as a
slice along the second axis is, has a region of its own, in which its runs are packed.

A region is filled by *pieces*, each one read. Regions are bounded, so that a reader who lets go of
tensors lets go of their memory soon.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from modelcache.loader.slicing import Part

PAGE_BYTES: Final = 4096  # of O_DIRECT: offsets, sizes, addresses
PIECE_BYTES: Final = 8 << 20  # one read; from 4 MiB on a disk gains nothing (bench/load)
REST_BYTES_MAX: Final = 1 << 20  # goes with the piece before it rather than costing a request
REGION_BYTES_MAX: Final = 64 << 20  # of several tensors together; a larger tensor has its own
GAP_BYTES_MAX: Final = 64 << 10  # read through rather than around: a request costs as much
RUNS_MAX: Final = 500  # of a scattered piece: each is two buffers, and IOV_MAX is 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """One read: `count` runs of `run_bytes`, `stride_bytes` apart, packed at `at` in the region.

    A piece of a region that is not scattered is one run of whole pages.
    """

    start: int
    run_bytes: int
    stride_bytes: int
    count: int
    at: int

    @property
    def end(self) -> int:
        """One past the last byte of the file that it reads."""
        return self.start + (self.count - 1) * self.stride_bytes + self.run_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes that it brings."""
        return self.run_bytes * self.count


@dataclass(frozen=True, slots=True)
class Region:
    """Memory for parts of one file. places: where in it each part begins.

    file: number of the file. start: offset in the file of the region's first byte, on a page;
    of a scattered one, of its part.
    """

    file: int
    start: int
    size_bytes: int
    parts: tuple[Part, ...]
    places: tuple[int, ...]
    pieces: tuple[Piece, ...]
    scattered: bool = False

    def overlapping(self, piece: Piece) -> range:
        """Numbers of the parts that have bytes in a piece."""
        if self.scattered:
            return range(1)
        end = piece.at + piece.size_bytes
        first = max(0, bisect_right(self.places, piece.at) - 1)
        first += self._end(first) <= piece.at
        return range(first, bisect_left(self.places, end))

    def _end(self, number: int) -> int:
        return self.places[number] + self.parts[number].size_bytes


def regions(file: int, parts: Iterable[Part], *, page_bytes: int = PAGE_BYTES) -> Iterator[Region]:
    """Lay out the wanted parts of one file, given in the order of their bytes; none is empty.

    page_bytes: what a region's ends are multiples of; 1 where no byte should be read twice.
    """
    group: list[Part] = []
    for part in parts:
        if part.count > 1:
            if group:
                yield _together(file, group, page_bytes)
                group = []
            yield _scattered(file, part)
        elif group and not _joins(group, part):
            yield _together(file, group, page_bytes)
            group = [part]
        else:
            group.append(part)
    if group:
        yield _together(file, group, page_bytes)


def _joins(group: Sequence[Part], part: Part) -> bool:
    return (
        part.start - group[-1].end <= GAP_BYTES_MAX
        and part.end - group[0].start <= REGION_BYTES_MAX
    )


def _together(file: int, parts: Sequence[Part], page_bytes: int) -> Region:
    start = parts[0].start // page_bytes * page_bytes
    end = -(-parts[-1].end // page_bytes) * page_bytes
    pieces = tuple(Piece(at, size, size, 1, at - start) for at, size in _cut(start, end))
    places = tuple(part.start - start for part in parts)
    return Region(file, start, end - start, tuple(parts), places, pieces)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where each piece begins, and its size."""
    while start < end:
        left = end - start
        size = left if left <= PIECE_BYTES + REST_BYTES_MAX else PIECE_BYTES
        yield start, size
        start += size


def _scattered(file: int, part: Part) -> Region:
    gaps = part.stride_bytes - part.run_bytes
    cost = part.stride_bytes if gaps <= GAP_BYTES_MAX else part.run_bytes
    step = max(1, min(RUNS_MAX, PIECE_BYTES // cost))
    pieces = tuple(
        Piece(
            part.start + first * part.stride_bytes,
            part.run_bytes,
            part.stride_bytes,
            min(step, part.count - first),
            first * part.run_bytes,
        )
        for first in range(0, part.count, step)
    )
    return Region(file, part.start, part.size_bytes, (part,), (0,), pieces, scattered=True)
