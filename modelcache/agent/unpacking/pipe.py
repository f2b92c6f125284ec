"""From the workers that decompress to the thread that reads the tar: a bounded queue of pieces."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from time import perf_counter
from typing import Final

from modelcache.errors import Cancelled, CorruptData

PIECES_MAX: Final = 4  # waiting: a hiccup of the disk is bridged, and a layer costs 4 MiB


class Pipe:
    """One side puts, the other reads. The reader must go on until the end, or `drain`."""

    def __init__(self) -> None:
        self._queue: Queue[bytes | None] = Queue(PIECES_MAX)
        self._piece = memoryview(b"")
        self._ended = False
        self._broken = False
        self.put_wait_s = 0.0
        self.read_wait_s = 0.0

    # The writer's side

    def put(self, piece: bytes) -> None:
        """Hand over a piece; waits while PIECES_MAX are waiting."""
        started_s = perf_counter()
        self._queue.put(piece)
        self.put_wait_s += perf_counter() - started_s

    def end(self) -> None:
        """There is no more."""
        self._queue.put(None)

    def break_off(self) -> None:
        """The rest will not come: the reader gets Cancelled."""
        self._broken = True
        self._queue.put(None)

    # The reader's side

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, which should be few. Raises CorruptData at the end, Cancelled."""
        return b"".join(self.spans(size))

    def spans(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes as they come. Raises CorruptData when they end before that."""
        while size:
            if not self._fill():
                raise CorruptData("it ends in the middle of a member")
            span, self._piece = self._piece[:size], self._piece[size:]
            size -= len(span)
            yield span

    def rest(self) -> Iterator[memoryview]:
        """All that is left."""
        while self._fill():
            span, self._piece = self._piece, self._piece[:0]
            yield span

    def at_end(self) -> bool:
        """Whether nothing is left; waits until that is known."""
        return not self._fill()

    def drain(self) -> None:
        """Throw away the rest, so that the writer is not kept waiting."""
        self._piece = self._piece[:0]
        while not self._ended:
            self._ended = self._queue.get() is None

    def _fill(self) -> bool:
        """Have at least one byte at hand; False at the end."""
        while not len(self._piece):
            if self._ended:
                return False
            started_s = perf_counter()
            piece = self._queue.get()
            self.read_wait_s += perf_counter() - started_s
            if piece is None:
                self._ended = True
                if self._broken:
                    raise Cancelled("unpacking was broken off")
            else:
                self._piece = memoryview(piece)
        return True
