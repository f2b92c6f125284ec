"""One bounded pool of page-aligned blocks; every byte from the network passes through it.

The pool is one anonymous mapping, touched only as far as it is used: the free list is last in,
first out, so a pull with few connections stays in few pages. Huge pages are asked for because a
block is read, hashed and written as a whole and 4 KiB pages would cost a TLB miss each.
"""

from __future__ import annotations

import mmap
import threading
from typing import Final

from modelcache.config import BLOCK_BYTES

BLOCKS_MIN: Final = 8  # two connections with a block each, and room for a hedge


class Block:
    """One block of the pool. `view` is valid until `release`."""

    __slots__ = ("_pool", "view")

    def __init__(self, pool: BufferPool, view: memoryview) -> None:
        self._pool = pool
        self.view = view

    def release(self) -> None:
        """Give the block back; nobody may touch `view` after."""
        self._pool._put(self)  # noqa: SLF001 - a block and its pool are one thing


class BufferPool:
    """`memory_bytes // BLOCK_BYTES` blocks. Thread-safe."""

    def __init__(self, memory_bytes: int) -> None:
        count = max(BLOCKS_MIN, memory_bytes // BLOCK_BYTES)
        self.blocks = count
        # One block more than needed, so that the first can start on a huge-page boundary.
        self._arena = mmap.mmap(-1, (count + 1) * BLOCK_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._advise_huge()
        whole = memoryview(self._arena)
        self._free = [
            Block(self, whole[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
            for index in reversed(range(count))
        ]
        self._available = threading.Condition()

    @property
    def free(self) -> int:
        """Blocks nobody holds, at this moment."""
        return len(self._free)

    def take(self) -> Block:
        """Wait for a block. Holders never wait for a second block while others wait for a first."""
        with self._available:
            while not self._free:
                self._available.wait()
            return self._free.pop()

    def take_if(self, *, left: int) -> Block | None:
        """A block if at least `left` others stay free, else None at once."""
        with self._available:
            return self._free.pop() if len(self._free) > left else None

    def _put(self, block: Block) -> None:
        with self._available:
            self._free.append(block)
            self._available.notify()

    def _advise_huge(self) -> None:
        try:
            self._arena.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return  # a kernel without transparent huge pages: slower by a few percent, no more
