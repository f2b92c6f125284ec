"""Memory that tensors live in: aligned for direct reads, given back when the last of them goes."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

HUGE_BYTES: Final = 2 << 20  # a huge page of x86-64 and of arm64 with 4 KiB pages


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
    """Private zero pages, on a page boundary; large ones in huge pages, which fault less often."""
    huge = size_bytes >= HUGE_BYTES
    # Python has no way to ask for an aligned mapping; what is never touched takes no memory.
    arena = mmap.mmap(
        -1,
        size_bytes + (HUGE_BYTES if huge else 0),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    )
    offset = 0
    if huge:
        offset = -_address(arena) % HUGE_BYTES
        _advise_huge(arena, offset, size_bytes // HUGE_BYTES * HUGE_BYTES)
    return Memory(memoryview(arena)[offset : offset + size_bytes], arena, offset)


def _address(arena: mmap.mmap) -> int:
    import ctypes  # noqa: PLC0415 - only for large tensors

    return ctypes.addressof(ctypes.c_char.from_buffer(arena))


def _advise_huge(arena: mmap.mmap, start: int, length: int) -> None:
    """All but what would be the start of a last, mostly empty huge page."""
    rest = start + length
    try:
        arena.madvise(mmap.MADV_HUGEPAGE, start, length)
        if rest < len(arena):
            arena.madvise(mmap.MADV_NOHUGEPAGE, rest, len(arena) - rest)
    except (AttributeError, OSError):
        return  # a kernel without transparent huge pages: slower by some percent, no more
