"""What peers may have of this node: ranges of blobs, complete ones and such as are on their way.

Of a blob on its way only chunks are given that came from an origin or from a node that has all of
it; the rest has not been vouched for by anybody. A chunk that is not here yet is asked of the
planner, ahead of everything else, and waited for.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Final

from modelcache.agent.swarm.active import Active
from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import NotHeld, NotYet, StoreError
from modelcache.peers.shelf import Gone, Piece, never
from modelcache.planner import ChunkWanted
from modelcache.store import BlobState, Store, receipts
from modelcache.store.receipts import Receipt
from modelcache.transfer.jobs import BlobJob

RECEIPTS_MAX: Final = 256  # of the blobs asked for last; each has 16 bytes for a chunk
RETRY_S: Final = 1.0  # when to ask again for what did not come in time
TRIES: Final = 3  # a blob may be published, or begun anew, between two looks


class Shelf:
    """See the module. Thread-safe."""

    def __init__(self, store: Store, active: Active) -> None:
        self._store = store
        self._active = active
        self._receipts: OrderedDict[BlobId, Receipt] = OrderedDict()
        self._lock = Lock()
        self.given_s = float("-inf")  # when a chunk of an unfinished blob was given last

    def open(self, blob: BlobId, span: ByteRange, *, wait_s: float, gone: Gone = never) -> Piece:
        """A descriptor for what of a range is within the blob.

        With the chunks' hashes where it is cut at chunks. Waits up to `wait_s` for what is on its
        way, while the asker has not `gone`. Raises NotHeld, NotYet.
        """
        deadline_s = monotonic() + wait_s
        for _ in range(TRIES):
            piece = self._complete(blob, span)
            if piece is not None:
                return piece
            found = self._active.job(blob)
            if found is None:
                break
            transfer, job = found
            within = _within(span, job.file.size_bytes)
            for chunk in job.unserved(within):
                transfer.tell(ChunkWanted(blob, chunk))
            if not job.wait_served(within, max(0.0, deadline_s - monotonic()), gone):
                if self._store.has_blob(blob, job.file.size_bytes):
                    continue  # complete meanwhile
                raise NotYet("the chunk did not come in time", retry_after_s=RETRY_S)
            piece = self._partial(job, within)
            if piece is not None:
                self.given_s = monotonic()
                return piece
        raise NotHeld("this node has no such blob")

    def holding(self, blob: BlobId) -> Holding | None:
        """What this node has of a blob, None for nothing."""
        receipt = self._receipt(blob)
        if receipt is not None:
            return Holding(blob, HoldingState.COMPLETE, receipt.grid)
        found = self._active.job(blob)
        return found[1].holding() if found else None

    def _complete(self, blob: BlobId, span: ByteRange) -> Piece | None:
        receipt = self._receipt(blob)
        if receipt is None:
            return None
        path = self._store.layout.blob(blob)
        within = _within(span, receipt.size_bytes)
        hashes = _hashes(receipt.grid, within, lambda chunk: receipt.chunk_hashes[chunk])
        return _open(path, within, receipt.size_bytes, hashes)

    def _partial(self, job: BlobJob, span: ByteRange) -> Piece | None:
        writer = job.writer
        if writer is None:
            return None
        try:
            hashes = _hashes(job.grid, span, writer.chunk_hash)
        except KeyError:  # taken back since
            return None
        return _open(writer.data_path, span, job.file.size_bytes, hashes)

    def _receipt(self, blob: BlobId) -> Receipt | None:
        """Of a blob that is the file that was published; None if there is none."""
        path = self._store.layout.blob(blob)
        with self._lock:
            known = self._receipts.get(blob)
            if known is not None:
                self._receipts.move_to_end(blob)
        if known is not None and receipts.state(path, known) is BlobState.INTACT:
            return known
        receipt = self._store.receipt(blob)
        if receipt is None or receipts.state(path, receipt) is not BlobState.INTACT:
            return None
        with self._lock:
            self._receipts[blob] = receipt
            while len(self._receipts) > RECEIPTS_MAX:
                self._receipts.popitem(last=False)
        return receipt


def _within(span: ByteRange, size_bytes: int) -> ByteRange:
    """What of a range that came from the network is within the blob."""
    start = min(span.start, size_bytes)
    return ByteRange(start, max(start, min(span.end, size_bytes)))


def _hashes(grid: ChunkGrid, span: ByteRange, of: Callable[[int], bytes]) -> tuple[bytes, ...]:
    """Of the chunks of a range that is cut where chunks are; else none."""
    if not span.size_bytes:
        return ()
    chunks = grid.covering(span)
    if grid.span(chunks.start, len(chunks)) != span:
        return ()
    return tuple(of(chunk) for chunk in chunks)


def _open(path: Path, span: ByteRange, total_bytes: int, hashes: tuple[bytes, ...]) -> Piece | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None  # published, evicted or begun anew since
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
    return Piece(fd, span.start, span.size_bytes, total_bytes, hashes)
