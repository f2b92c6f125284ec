"""What a simulated node has, and who waits there for what it does not have yet."""

from __future__ import annotations

from modelcache.domain.holdings import Holding, HoldingState, bitmap
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.sim.attempts import Attempt


class Copy:
    """One blob on one node."""

    __slots__ = ("blob", "complete", "grid", "reading", "served", "stored", "waiting", "wrong")

    def __init__(self, blob: BlobId, grid: ChunkGrid, *, complete: bool = False) -> None:
        self.blob = blob
        self.grid = grid
        self.complete = complete
        self.stored = bytearray(grid.count)
        self.served = bytearray(grid.count)  # may be passed on before the blob is complete
        self.reading: dict[int, None] = {}  # on its way from who vouches for it
        self.wrong: dict[int, None] = {}  # not the origin's bytes
        self.waiting: dict[int, dict[Attempt, None]] = {}  # by chunk

    def offers(self, chunk: int) -> bool:
        """Whether a peer that asks gets the chunk at once."""
        return self.complete or bool(self.served[chunk])

    def store(self, chunk: int, *, served: bool, wrong: bool) -> bool:
        """Keep a chunk; False if it was there already."""
        if self.stored[chunk]:
            return False
        self.stored[chunk] = 1
        self.served[chunk] = served
        if wrong:
            self.wrong[chunk] = None
        return True

    def vouch(self, chunk: int) -> bool:
        """The chunk has been read again from the origin; False if it was another until now."""
        self.served[chunk] = 1
        same = chunk not in self.wrong
        self.wrong.pop(chunk, None)
        return same

    def lose(self, chunks: tuple[int, ...]) -> None:
        """Forget these chunks; none named: all."""
        for chunk in chunks or range(self.grid.count):
            self.stored[chunk] = self.served[chunk] = 0
            self.wrong.pop(chunk, None)

    def release(self, chunk: int) -> list[Attempt]:
        """Those that waited for a chunk, in the order in which they came."""
        return list(self.waiting.pop(chunk, ()))

    def release_all(self) -> list[Attempt]:
        """Those that waited for any."""
        waited = [attempt for chunk in sorted(self.waiting) for attempt in self.waiting[chunk]]
        self.waiting.clear()
        return waited

    def holding(self) -> Holding:
        """What the node says of it."""
        if self.complete:
            return Holding(self.blob, HoldingState.COMPLETE, self.grid)
        count = self.grid.count
        chunks = [chunk for chunk in range(count) if self.served[chunk] or chunk in self.reading]
        return Holding(self.blob, HoldingState.FETCHING, self.grid, bitmap(chunks, count))
