"""Memory that tensors live in: aligned for direct reads, given back when the last of them goes.

Huge pages halve the time of a load where the kernel has them lying about. Where it has not, asking
for them makes every fault move other memory about until there is one: loads took up to twice as
long as with small pages, and twice the CPU. So they are asked for only while there are enough.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelcache.store.blocks import HUGE_BYTES, huge_offset

HUGE_SPARE: Final = 2  # times what is needed has to be free: others take of it too
_BUDDIES: Final = Path("/proc/buddyinfo")


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
    huge = size_bytes >= HUGE_BYTES and free_huge_bytes() >= HUGE_SPARE * size_bytes
    # Python has no way to ask for an aligned mapping; what is never touched takes no memory.
    arena = mmap.mmap(
        -1,
        size_bytes + (HUGE_BYTES if huge else 0),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    )
    offset = 0
    if huge:
        offset = huge_offset(arena)
        _advise_huge(arena, offset, size_bytes // HUGE_BYTES * HUGE_BYTES)
    return Memory(memoryview(arena)[offset : offset + size_bytes], arena, offset)


def free_huge_bytes(path: Path = _BUDDIES) -> int:
    """Free memory in pieces of a huge page or more; 0 where nobody tells."""
    smallest = (HUGE_BYTES // mmap.PAGESIZE).bit_length() - 1
    total = 0
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            counts = line.partition("zone")[2].split()[1:]  # by order, from single pages on
            total += sum(
                int(count) * mmap.PAGESIZE << order
                for order, count in enumerate(counts)
                if order >= smallest
            )
    return total


def _advise_huge(arena: mmap.mmap, start: int, length: int) -> None:
    """All but what would be the start of a last, mostly empty huge page."""
    rest = start + length
    try:
        arena.madvise(mmap.MADV_HUGEPAGE, start, length)
        if rest < len(arena):
            arena.madvise(mmap.MADV_NOHUGEPAGE, rest, len(arena) - rest)
    except (AttributeError, OSError):
        return  # a kernel without transparent huge pages
