"""Memory as a measurement should find it.

A guest that gives free pages back to its host has to fault each one in again, which takes ten times
as long as anything that is measured here, and hits whoever comes after two idle seconds.
"""

from __future__ import annotations

import mmap

FILLED_BYTES = 5 << 30  # a copy of the model, and the page cache beside it


def back_memory() -> None:
    """Fill memory and free it, so that the host has given what the next few seconds will take."""
    filler = mmap.mmap(-1, FILLED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    filler.madvise(mmap.MADV_HUGEPAGE)
    block = bytes(1 << 20)
    for _ in range(FILLED_BYTES // len(block)):
        filler.write(block)
    filler.close()
