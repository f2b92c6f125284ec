"""Hash a file's chunks at the speed of the disk: several threads, past the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import xxhash

from modelcache.config import BLOCK_BYTES
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.store import files
from modelcache.store.blocks import in_huge_pages
from modelcache.store.files import ALIGNMENT

THREADS: Final = 4  # saturates one NVMe device here; hashing itself is 12 GB/s a core


def open_for_reading(path: Path) -> int:
    """A descriptor past the page cache where the filesystem has that."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def new_buffer() -> memoryview:
    """An aligned block, for reads past the page cache."""
    return in_huge_pages(BLOCK_BYTES)


def read_block(fd: int, span: ByteRange, buffer: memoryview) -> bool:
    """Fill `buffer` with `span`, at most one block; False if the file ends before that.

    Works for descriptors with and without O_DIRECT. Raises OSError.
    """
    size = span.size_bytes
    padded = -(-size // ALIGNMENT) * ALIGNMENT
    filled = 0
    while filled < size:
        try:
            got = os.preadv(fd, [buffer[filled:padded]], span.start + filled)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            files.clear_direct(fd)  # opened, then refused: the alignment is not enough for it
            got = os.preadv(fd, [buffer[filled:padded]], span.start + filled)
        if not got:
            return False
        filled += got
    return True


def chunk_hash(fd: int, grid: ChunkGrid, chunk: int, buffer: memoryview) -> bytes | None:
    """XXH3-128 of one chunk as the disk has it; None where the file is shorter or unreadable."""
    span = grid.span(chunk)
    hashed = xxhash.xxh3_128()
    for start in range(span.start, span.end, BLOCK_BYTES):
        block = ByteRange(start, min(start + BLOCK_BYTES, span.end))
        try:
            if not read_block(fd, block, buffer):
                return None
        except OSError:
            return None  # a bad sector, say: this chunk is lost, the next may be there
        hashed.update(buffer[: block.size_bytes])
    return hashed.digest()


def chunk_hashes(path: Path, grid: ChunkGrid, chunks: Iterable[int]) -> dict[int, bytes | None]:
    """Hash these chunks of a file. Raises OSError when it cannot be opened."""
    numbers = list(chunks)
    fd = open_for_reading(path)
    try:
        if len(numbers) <= 1:
            return {chunk: chunk_hash(fd, grid, chunk, new_buffer()) for chunk in numbers}
        buffers = [new_buffer() for _ in range(min(THREADS, len(numbers)))]

        def hash_one(chunk: int) -> bytes | None:
            buffer = buffers.pop()  # there are as many as threads
            try:
                return chunk_hash(fd, grid, chunk, buffer)
            finally:
                buffers.append(buffer)

        with ThreadPoolExecutor(len(buffers)) as pool:
            return dict(zip(numbers, pool.map(hash_one, numbers), strict=True))
    finally:
        os.close(fd)
