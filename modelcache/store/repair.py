"""Finding damage in complete blobs, and turning a damaged blob into a partial that can be mended.

The visible file is never written to: somebody may have it mapped. A new partial takes over the
good chunks, the transfer engine fetches the bad ones, and publishing replaces the name; snapshots
are then linked anew. Readers that have the old file open keep it until they close it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import xxhash

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import Algorithm, BlobId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.store import files, hashing, receipts
from modelcache.store.receipts import Receipt
from modelcache.store.store import Store
from modelcache.store.writer import BlobWriter, WriteMode

_SHA256: Final = "sha256-"


def bad_chunks(store: Store, blob: BlobId, size_bytes: int) -> list[int]:
    """Chunks of a complete blob whose bytes are not what was published.

    Without a readable receipt a blob named by its SHA-256 is hashed as a whole; any other is in
    doubt entirely. Raises StoreError when the blob cannot be read at all.
    """
    path = store.layout.blob(blob)
    receipt = store.receipt(blob)
    with files.translated(path):
        if receipt is None or receipt.size_bytes != size_bytes:
            grid = ChunkGrid(size_bytes, store.settings.chunk_bytes)
            if not _is_content(path, blob):
                return list(range(grid.count))
            _write_receipt(store, blob, grid)
            return []
        found = hashing.chunk_hashes(path, receipt.grid, range(receipt.grid.count))
        longer = path.stat().st_size != size_bytes
    bad = [chunk for chunk, value in found.items() if value != receipt.chunk_hashes[chunk]]
    if longer and not bad and receipt.grid.count:
        bad = [receipt.grid.count - 1]
    return bad


def reopen(
    store: Store, blob: BlobId, size_bytes: int, bad: Sequence[int], *, mode: WriteMode
) -> BlobWriter:
    """A writer that has every chunk of the blob but `bad`, over a copy of its bytes.

    What is copied is hashed on the way, so a chunk that went bad meanwhile is not taken for good.
    Raises BlobBusy, StoreFull. The blob itself stays as it is until the writer publishes.
    """
    receipt = store.receipt(blob)
    writer = store.writer(blob, size_bytes, mode=mode, replace=True)
    if receipt is None or receipt.grid != writer.grid:
        return writer
    try:
        with files.translated(store.layout.blob(blob)):
            _copy_good(store, receipt, writer, set(bad))
    except BaseException:
        writer.close()
        raise
    return writer


def _copy_good(store: Store, receipt: Receipt, writer: BlobWriter, bad: set[int]) -> None:
    source = hashing.open_for_reading(store.layout.blob(writer.blob))
    buffer = hashing.new_buffer()
    try:
        for chunk in range(writer.grid.count):
            if chunk not in bad and not writer.is_done(chunk):
                copied = _copy_chunk(source, writer, chunk, buffer)
                if copied == receipt.chunk_hashes[chunk]:
                    writer.finish_chunk(chunk, copied, None)
    finally:
        os.close(source)


def _copy_chunk(source: int, writer: BlobWriter, chunk: int, buffer: memoryview) -> bytes | None:
    """Copy one chunk and return its hash; None when it cannot be read."""
    span = writer.grid.span(chunk)
    hashed = xxhash.xxh3_128()
    for start in range(span.start, span.end, BLOCK_BYTES):
        block = ByteRange(start, min(start + BLOCK_BYTES, span.end))
        try:
            if not hashing.read_block(source, block, buffer):
                return None
        except OSError:
            return None  # a bad sector: fetched again like any other damage
        hashed.update(buffer[: block.size_bytes])
        writer.write(start, buffer, block.size_bytes)
    return hashed.digest()


def _is_content(path: Path, blob: BlobId) -> bool:
    """Whether the blob is named by its SHA-256 and has it."""
    if not blob.startswith(_SHA256):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.removeprefix(_SHA256)


def _write_receipt(store: Store, blob: BlobId, grid: ChunkGrid) -> None:
    """Replace a lost receipt of a blob that its name vouches for."""
    path = store.layout.blob(blob)
    status = path.stat()
    found = hashing.chunk_hashes(path, grid, range(grid.count))
    hashes = tuple(value for value in found.values() if value is not None)
    if store.writable and len(hashes) == grid.count:
        receipt = Receipt(grid.size_bytes, grid.chunk_bytes, hashes, Algorithm.SHA256.value)
        receipts.write_file(store.layout.receipt(blob), receipt.of(status).to_bytes())
