"""Memory that tensors live in: aligned for direct reads, given back when the last of them goes.

Huge pages are not asked for. With the usual settings that makes a fault look for 2 MiB in one piece
and move other memory about until there is one; on a machine whose page cache has been at work for
an hour loads took up to twice as long with them, and twice the CPU (bench/load). Where they are to
be had for nothing, `transparent_hugepage/enabled=always` gives them unasked.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Memory:
    """`view` is the memory; `owner` an object with a buffer whose byte `offset` is its first.

    Arrays over `owner` keep it alive; nothing else needs to.
    """

    view: memoryview
    owner: Any
    offset: int


Allocate = Callable[[int], Memory]


def anonymous(size_bytes: int) -> Memory:
    """Private zero pages, on a page boundary."""
    arena = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return Memory(memoryview(arena), arena, 0)
