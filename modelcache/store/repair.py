"""Finding damage in complete blobs, and turning a damaged blob into a partial that can be mended.

The visible file is never written to: somebody may have it mapped. A new partial takes over the
good chunks, the transfer engine fetches the bad ones, and publishing replaces the name; snapshots
are then linked anew. Readers that have the old file open keep it until they close it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.store import files, hashing
from modelcache.store.receipts import Receipt
from modelcache.store.store import Store
from modelcache.store.writer import BlobWriter, WriteMode

_SHA256: str = "sha256-"


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
            intact = blob.startswith(_SHA256) and _sha256(store, blob) == blob[len(_SHA256) :]
            return [] if intact else list(range(grid.count))
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

    Raises BlobBusy, StoreFull. The blob itself stays as it is until the writer publishes.
    """
    receipt = store.receipt(blob)
    writer = store.writer(blob, size_bytes, mode=mode)
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
    buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    try:
        for chunk in range(writer.grid.count):
            if chunk in bad or writer.is_done(chunk):
                continue
            span = writer.grid.span(chunk)
            for start in range(span.start, span.end, BLOCK_BYTES):
                size = min(BLOCK_BYTES, span.end - start)
                padded = -(-size // files.ALIGNMENT) * files.ALIGNMENT
                if os.preadv(source, [buffer[:padded]], start) < size:
                    raise OSError(5, "shorter than its receipt says")
                writer.write(start, buffer, size)
            writer.finish_chunk(chunk, receipt.chunk_hashes[chunk], None)
    finally:
        os.close(source)


def _sha256(store: Store, blob: BlobId) -> str:
    with store.layout.blob(blob).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
