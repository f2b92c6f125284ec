"""The contiguous frontier: stored chunks of one blob, or of several in a row, fed in order.

Chunks land in any order; SHA-256 and its like must see bytes in order. Whoever stores a chunk also
feeds what has become contiguous, one thread at a time. What lands beyond the frontier waits in its
buffers while most of the pool is free, and is read back from the store otherwise.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import StoreError
from modelcache.store import files, hashing
from modelcache.transfer.buffers import Block, BufferPool


class StoredChunks(Protocol):
    """Where chunks of one blob can be read back from: its writer, or the published blob."""

    grid: ChunkGrid

    def is_done(self, chunk: int) -> bool:
        """Whether a chunk is stored."""
        ...

    def read(self, offset: int, buffer: memoryview, length: int) -> None:
        """Read stored bytes into an aligned buffer of at least one block. Raises StoreError."""
        ...


class PublishedBlob:
    """A blob that was complete before."""

    def __init__(self, path: Path, grid: ChunkGrid) -> None:
        self.grid = grid
        self._path = path

    def is_done(self, chunk: int) -> bool:
        """See StoredChunks."""
        return chunk < self.grid.count

    def read(self, offset: int, buffer: memoryview, length: int) -> None:
        """See StoredChunks."""
        with files.translated(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                whole = hashing.read_block(fd, ByteRange(offset, offset + length), buffer)
            finally:
                os.close(fd)
        if not whole:
            raise StoreError(f"{self._path} is shorter than its receipt says; verify the store")


class Frontier:
    """Feeds `pieces` (bytes, and blobs chunk by chunk) to `update`, in order. Thread-safe.

    update: called by one thread at a time; what it raises reaches the one who stored the chunk.
    """

    def __init__(
        self,
        pieces: Sequence[bytes | BlobId],
        pool: BufferPool,
        update: Callable[[memoryview], None],
    ) -> None:
        self._pieces = tuple(pieces)
        self._index = {piece: at for at, piece in enumerate(pieces) if isinstance(piece, str)}
        self._pool = pool
        self._update = update
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy = False
        self._parked = False  # chunks are being replaced: wait until they all are
        self._blobs: dict[BlobId, StoredChunks] = {}
        self._held: dict[tuple[int, int], list[Block]] = {}
        self._next = (0, 0)  # piece, chunk of it

    def open(self, blob: BlobId, stored: StoredChunks) -> None:
        """Say where a blob's chunks are; until then the frontier waits before it."""
        with self._lock:
            self._blobs[blob] = stored

    def stored(self, blob: BlobId, chunk: int, blocks: list[Block]) -> None:
        """A chunk is in the store. Takes over `blocks`: its bytes, its last few, or none."""
        at = (self._index[blob], chunk)
        whole = len(blocks) * BLOCK_BYTES >= self._blobs[blob].grid.span(chunk).size_bytes
        with self._lock:
            release(self._held.pop(at, []))  # of a chunk that was replaced
            # Keep what lands beyond the frontier only while most of the pool is free.
            keep = whole and not self._parked and at >= self._next
            if keep and self._pool.free > self._pool.blocks // 4:
                self._held[at] = blocks
            else:
                release(blocks)
            if self._busy or self._parked:
                return
            self._busy = True
        self._advance()

    def finish(self) -> None:
        """Feed all that is left; every chunk is stored."""
        with self._lock:
            self._idle.wait_for(lambda: not self._busy)
            self._busy = True
        self._advance()
        assert self._next[0] == len(self._pieces), "all chunks are stored"  # noqa: S101

    def restart(self, reset: Callable[[], None]) -> None:
        """Feed everything again, at `finish`: bytes were wrong, and other ones come.

        Not while they come: which of those that are there stay is not known before the last has.

        reset: makes `update` forget what it was given; called while nobody feeds it.
        """
        with self._lock:
            self._parked = True
            self._idle.wait_for(lambda: not self._busy)
            for blocks in self._held.values():
                release(blocks)
            self._held.clear()
            self._next = (0, 0)
            reset()

    def _advance(self) -> None:
        """Feed from the frontier on while what follows is stored. One thread at a time."""
        try:
            while True:
                with self._lock:
                    if not self._ready():
                        self._let_go()
                        return
                    piece, chunk = self._next
                    blocks = self._held.pop(self._next, None)
                self._feed(self._pieces[piece], chunk, blocks)
                with self._lock:
                    self._next = self._after(piece, chunk)
        except BaseException:
            with self._lock:
                self._let_go()
            raise

    def _let_go(self) -> None:
        self._busy = False
        self._idle.notify_all()

    def _ready(self) -> bool:
        piece, chunk = self._next
        if piece == len(self._pieces):
            return False
        content = self._pieces[piece]
        if isinstance(content, bytes):
            return True
        blob = self._blobs.get(content)
        return blob is not None and (blob.grid.count == 0 or blob.is_done(chunk))

    def _after(self, piece: int, chunk: int) -> tuple[int, int]:
        content = self._pieces[piece]
        last = isinstance(content, bytes) or chunk + 1 >= self._blobs[content].grid.count
        return (piece + 1, 0) if last else (piece, chunk + 1)

    def _feed(self, content: bytes | BlobId, chunk: int, blocks: list[Block] | None) -> None:
        if isinstance(content, bytes):
            self._update(memoryview(content))
            return
        blob = self._blobs[content]
        if not blob.grid.count:
            return
        span = blob.grid.span(chunk)
        if blocks is None:
            read_back(blob, span, self._update)
            return
        try:
            left = span.size_bytes
            for block in blocks:
                self._update(block.view[: min(left, BLOCK_BYTES)])
                left -= BLOCK_BYTES
        finally:
            release(blocks)


def read_back(stored: StoredChunks, span: ByteRange, update: Callable[[memoryview], None]) -> None:
    """Feed the stored bytes of `span` to `update`. Rare: resumed blobs and full pools."""
    buffer = _scratch()
    for start in range(span.start, span.end, BLOCK_BYTES):
        size = min(BLOCK_BYTES, span.end - start)
        stored.read(start, buffer, size)
        update(buffer[:size])


def release(blocks: list[Block]) -> None:
    """Give blocks back to their pool."""
    for block in blocks:
        block.release()
    blocks.clear()


_local = threading.local()


def _scratch() -> memoryview:
    """One aligned block per thread, outside the pool: reading back must not wait for the pool."""
    if not hasattr(_local, "block"):
        _local.block = hashing.new_buffer()
    block: memoryview = _local.block
    return block


# A child that was forked does not have its memory (`store/blocks.py`), only the name of it.
os.register_at_fork(after_in_child=lambda: vars(_local).clear())
