"""One bounded pool of page-aligned blocks; every byte from the network passes through it.

The pool is one anonymous mapping, touched only as far as it is used: the free list is last in,
first out, so a pull with few connections stays in few pages. Each block is a huge page where the
kernel has one: a disk writes it in one piece (`store/blocks.py`).
"""

from __future__ import annotations

import threading
from typing import Final

from modelcache.config import BLOCK_BYTES
from modelcache.store.blocks import in_huge_pages

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
        whole = in_huge_pages(count * BLOCK_BYTES)
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
