"""What a node has of a blob, as it tells others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid


class HoldingState(StrEnum):
    """How far a node is with a blob."""

    NONE = "none"
    FETCHING = "fetching"  # it wants the blob, and takes its share of the work
    COMPLETE = "complete"  # verified against its origin
    LEAVING = "leaving"  # it fetches no more, and gives what it has before it goes


PARTLY: Final = frozenset({HoldingState.FETCHING, HoldingState.LEAVING})  # those with a bitmap


@dataclass(frozen=True, slots=True)
class Holding:
    """What one node has of one blob.

    chunks: of a blob that is not complete, those that the node serves or is just reading from an
    origin: bit `i % 8` of byte `i // 8` stands for chunk `i`. Chunks that came from nodes which
    were still fetching themselves are not among them: nobody has vouched for those yet.
    """

    blob: BlobId
    state: HoldingState
    grid: ChunkGrid
    chunks: bytes = b""

    def has(self, chunk: int) -> bool:
        """Whether the chunk can be asked for."""
        if self.state not in PARTLY:
            return self.state is HoldingState.COMPLETE
        return chunk // 8 < len(self.chunks) and bool(self.chunks[chunk // 8] >> chunk % 8 & 1)

    def listed(self) -> list[int]:
        """The chunks of `chunks`, in order."""
        return [
            8 * place + bit
            for place, byte in enumerate(self.chunks)
            if byte
            for bit in range(8)
            if byte >> bit & 1 and 8 * place + bit < self.grid.count
        ]


def bitmap(chunks: Iterable[int], count: int) -> bytes:
    """Chunk numbers below `count` as `Holding.chunks`."""
    bits = bytearray(-(-count // 8))
    for chunk in chunks:
        bits[chunk // 8] |= 1 << chunk % 8
    return bytes(bits)
