"""Fills regions by several threads, and tells which tensors are complete.

Threads take pieces in the order of the files, passing over those whose bytes are not here yet. How
much memory is out at once is bounded by a window: a region is allocated when its first piece is
taken, and counts until the consumer is done with its last tensor. The region that is to be given
next always has room, or it could wait for ever behind later ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol, Self

from modelcache.loader.memory import Allocate, Memory
from modelcache.loader.plan import Piece, Region

LOOK_S: Final = (
    0.02  # how often it is asked whether more has come; a chunk takes as long at 0.8 GB/s
)
AHEAD_MAX: Final = 2048  # pieces that are looked at for one that is here


class Reader(Protocol):
    """One file that tensors are read from. Thread-safe."""

    def ready(self, piece: Piece) -> bool:
        """Whether all bytes of a piece could be read now. Raises what has gone wrong with it."""
        ...

    def read(self, piece: Piece, into: memoryview) -> None:
        """Fill `into` with a piece of one run, of whole pages but for the end of the file."""
        ...

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        """Fill `into` with the runs of a piece, packed."""
        ...


@dataclass(slots=True)
class _Filling:
    """A region under way. left: pieces that each part still lacks; open: parts not given yet."""

    region: Region
    left: list[int]
    open: int
    pieces: deque[Piece] = field(default_factory=deque)
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """A part that is complete: its bytes begin at `place` of the memory."""

    region: int
    part: int
    memory: Memory
    place: int


class Reading:
    """See the module. Use once, with `with`: leaving it ends the threads and lets go of memory."""

    def __init__(
        self,
        files: Sequence[Reader],
        regions: Sequence[Region],
        *,
        threads: int,
        allocate: Allocate,
        window_bytes: int | None,
    ) -> None:
        """window_bytes: how much memory may be out at once; None for all of it."""
        self._files = files
        self._fillings = [_filling(region) for region in regions]
        self._allocate = allocate
        self._window_bytes = window_bytes
        self._out_bytes = 0
        self._first = 0  # regions before it have no piece that was not taken
        self._next = 0  # the region that is to be given next, in the order of the files
        self._awaiting = False  # some piece is not here yet
        self._look_s = 0.0  # not before this moment is it asked again whether more is here
        self._arrived: deque[tuple[int, int]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        pieces = sum(len(region.pieces) for region in regions)
        self._threads = [
            threading.Thread(target=self._work, name=f"loader-{number}", daemon=True)
            for number in range(min(threads, pieces))
        ]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads; reads under way are waited for, since they write into the memory."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._fillings = []

    def in_order(self) -> Iterator[Filled]:
        """Every part, in the order of the files. Raises what reading raises."""
        for number, filling in enumerate(self._fillings):
            for part in range(len(filling.left)):
                with self._changed:
                    self._next = number
                    self._changed.notify_all()
                    self._changed.wait_for(lambda f=filling, p=part: self._error or not f.left[p])  # type: ignore[misc]
                    self._check()
                yield self._filled(number, part)
                self._given(number)

    def as_they_come(self) -> Iterator[Filled]:
        """Every part, whichever is complete first. Raises what reading raises."""
        for _ in range(sum(len(filling.left) for filling in self._fillings)):
            with self._changed:
                self._changed.wait_for(lambda: self._error or self._arrived)
                self._check()
                number, part = self._arrived.popleft()
            yield self._filled(number, part)
            self._given(number)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _filled(self, number: int, part: int) -> Filled:
        filling = self._fillings[number]
        assert filling.memory is not None  # noqa: S101 - it is complete
        return Filled(number, part, filling.memory, filling.region.places[part])

    def _given(self, number: int) -> None:
        """The consumer is done with a part; with the last one, its region counts no more."""
        with self._changed:
            filling = self._fillings[number]
            filling.open -= 1
            if not filling.open:
                filling.memory = None
                self._out_bytes -= filling.region.size_bytes
                self._changed.notify_all()

    # Threads

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                number, piece, view = taken
                filling = self._fillings[number]
                reader = self._files[filling.region.file]
                if filling.region.scattered:
                    reader.read_runs(piece, view)
                else:
                    reader.read(piece, view)
                self._done(number, piece)
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self) -> tuple[int, Piece, memoryview] | None:
        """The next piece whose bytes are here, and where they go; None when there are no more."""
        with self._changed:
            while not self._stopped and self._error is None:
                while self._first < len(self._fillings) and not self._fillings[self._first].pieces:
                    self._first += 1
                if self._first == len(self._fillings):
                    return None
                now_s = monotonic()
                found = self._find() if now_s >= self._look_s else None
                if found is not None:
                    number, piece = found
                    memory = self._fillings[number].memory
                    assert memory is not None  # noqa: S101 - `_find` gave it some
                    return number, piece, memory.view[piece.at : piece.at + piece.size_bytes]
                if now_s >= self._look_s and self._awaiting:
                    self._look_s = now_s + LOOK_S
                self._changed.wait(self._look_s - now_s if self._awaiting else None)
            return None

    def _find(self) -> tuple[int, Piece] | None:
        looked = 0
        self._awaiting = False
        for number in range(self._first, len(self._fillings)):
            filling = self._fillings[number]
            if not filling.pieces or not self._may_open(number):
                continue
            reader = self._files[filling.region.file]
            for index, piece in enumerate(filling.pieces):
                looked += 1
                if reader.ready(piece):
                    del filling.pieces[index]
                    if filling.memory is None:
                        filling.memory = self._allocate(filling.region.size_bytes)
                        self._out_bytes += filling.region.size_bytes
                    return number, piece
                self._awaiting = True
                if looked == AHEAD_MAX:
                    return None
        return None

    def _may_open(self, number: int) -> bool:
        filling = self._fillings[number]
        if self._window_bytes is None or filling.memory is not None or not self._out_bytes:
            return True
        if number == self._next:
            return True
        return self._out_bytes + filling.region.size_bytes <= self._window_bytes

    def _done(self, number: int, piece: Piece) -> None:
        with self._changed:
            filling = self._fillings[number]
            complete = False
            for part in filling.region.overlapping(piece):
                filling.left[part] -= 1
                if not filling.left[part]:
                    self._arrived.append((number, part))
                    complete = True
            if complete:
                self._changed.notify_all()


def _filling(region: Region) -> _Filling:
    left = [0] * len(region.parts)
    for piece in region.pieces:
        for part in region.overlapping(piece):
            left[part] += 1
    return _Filling(region, left, len(left), deque(region.pieces))
