"""Half-open byte ranges and the fixed chunk grid laid over every blob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
CHUNK_BYTES_DEFAULT: Final = 16 * MIB


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """`[start, end)` in bytes of one blob."""

    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse a range that runs backwards: always our bug."""
        assert 0 <= self.start <= self.end, (self.start, self.end)  # noqa: S101 - marks our bugs

    @property
    def size_bytes(self) -> int:
        """Number of bytes in the range."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """The chunks of a blob: `i` is `[i * chunk_bytes, (i + 1) * chunk_bytes)`, cut at the end.

    An empty blob has no chunks.
    """

    size_bytes: int
    chunk_bytes: int

    @property
    def count(self) -> int:
        """How many chunks the blob has."""
        return -(-self.size_bytes // self.chunk_bytes)

    def span(self, first: int, count: int = 1) -> ByteRange:
        """Bytes of `count` chunks from chunk `first` on."""
        start = first * self.chunk_bytes
        return ByteRange(start, min(start + count * self.chunk_bytes, self.size_bytes))

    def covering(self, span: ByteRange) -> range:
        """The chunks that hold any byte of a range."""
        return range(span.start // self.chunk_bytes, -(-span.end // self.chunk_bytes))
