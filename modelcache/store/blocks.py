"""Memory that is read into and written from past the page cache, in huge pages where there are any.

A disk takes a request as a list of pieces of memory that lie in one piece physically. A virtio disk
has room for some 250 such pieces in all its requests together, so that a block scattered over 512
pages keeps it busy alone: one read 1.5 GB/s into small pages and 3.9 GB/s into huge ones, and wrote
2.4 and 3.4 GB/s (bench/findings.md). Huge pages are given to private mappings; Python's own, which
are shared, get them only where an administrator has said so.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import Final

HUGE_BYTES: Final = 2 << 20  # a huge page of x86-64 and of arm64 with 4 KiB pages


def in_huge_pages(size_bytes: int) -> memoryview:
    """Zeroed memory that begins on the boundary of a huge page and is kept by its view alone.

    A kernel that has no huge pages, or none left, gives small ones. What is never touched takes
    none. A child made by fork does not have it: copying a page that a disk is about to fill would
    part the two.
    """
    # Python has no way to ask for an aligned mapping.
    arena = mmap.mmap(-1, size_bytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = huge_offset(arena)
    with suppress(AttributeError, OSError):  # a kernel without
        arena.madvise(mmap.MADV_DONTFORK)
        arena.madvise(mmap.MADV_HUGEPAGE, offset, size_bytes // HUGE_BYTES * HUGE_BYTES)
    return memoryview(arena)[offset : offset + size_bytes]


def huge_offset(arena: mmap.mmap) -> int:
    """Where in it the first huge page begins."""
    return -ctypes.addressof(ctypes.c_char.from_buffer(arena)) % HUGE_BYTES
