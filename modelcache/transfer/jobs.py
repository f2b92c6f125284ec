"""One blob under way: its file, its writer, its check, and who may write which chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from modelcache.domain.holdings import Holding, HoldingState, bitmap
from modelcache.domain.manifests import File
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import ModelcacheError, StoreError
from modelcache.planner import AttemptId, SourceId, peer_of
from modelcache.sources.source import Source, Target
from modelcache.store import BlobWriter
from modelcache.transfer.assemblies import AssemblyCheck
from modelcache.transfer.checks import BlobCheck, Sink


class PeerSources(Protocol):
    """Where peers are."""

    def source(self, node: NodeId) -> Source:
        """What stands for a peer. Raises SourceUnavailable for one that has left."""
        ...


CLAIM_WAIT_S: Final = 60.0  # a revoked holder stops at its next block; a disk write may be slow
LOOK_S: Final = 0.5  # how often to see whether who waits for a chunk is still there
_MARGIN_S: Final = 5.0  # a signature this close to its end is renewed


class BlobJob:
    """What the engine knows of one blob. Chunk claims make sure that a chunk has one writer.

    An attempt claims a chunk before it writes the first byte of it. A hedge that has the whole
    chunk in memory revokes the claim, waits until its holder has let go, and writes: so bytes of
    two attempts never mix in one chunk.
    """

    def __init__(
        self,
        file: File,
        grid: ChunkGrid,
        source: Source,
        source_id: SourceId,
        *,
        small: bool,
        peers: PeerSources | None = None,
    ) -> None:
        self.file = file
        self.grid = grid
        self.source = source
        self.source_id = source_id
        self.small = small
        self.resumes = False  # a partial of it was there before
        self.in_order = False  # its checksum must see the bytes in order
        self.assembly: AssemblyCheck | None = None  # whose checksum covers this blob and others
        self.sink: Sink | None = None  # who takes the bytes while they arrive, in order
        self.writer: BlobWriter | None = None
        self.check: BlobCheck | None = None
        self.stored_bytes = 0
        self.verified: str | None = None  # of a small blob: the checksum that vouched
        self.error: ModelcacheError | None = None
        self.opening = threading.Lock()
        self._peers = peers
        self._targets: dict[SourceId, tuple[float, Target]] = {}
        self._served: set[int] = set()  # chunks that others may have
        self._coming: dict[int, int] = {}  # chunks that will be, and by how many attempts
        self._closed = False
        self._claims: dict[int, tuple[AttemptId, Callable[[], None]]] = {}
        self._revoked: set[tuple[int, AttemptId]] = set()
        self._done: set[int] = set()
        self._changed = threading.Condition()

    def asked(self, source_id: SourceId) -> Source:
        """The origin, or what stands for a peer. Raises SourceUnavailable for a peer that left."""
        node = peer_of(source_id)
        if node is None:
            return self.source
        assert self._peers is not None, "a peer was planned"  # noqa: S101
        return self._peers.source(node)

    def target(self, source_id: SourceId, *, fresh: bool) -> Target:
        """Where one source has the file, located again when asked to or when that grows old."""
        now_s = monotonic()
        known = self._targets.get(source_id)
        if fresh or known is None or known[0] <= now_s:
            target = self.asked(source_id).locate(self.file, fresh=fresh)
            good_for_s = getattr(target, "good_for_s", 0.0)
            known = self._targets[source_id] = (now_s + good_for_s - _MARGIN_S, target)
        return known[1]

    def resume(self, writer: BlobWriter) -> frozenset[int]:
        """Take over what an earlier pull stored, and its grid; returns the chunks."""
        done = writer.done
        self.grid = writer.grid
        with self._changed:
            self._done.update(done)
            self._served.update(chunk for chunk in done if not writer.relayed(chunk))
        self.stored_bytes = sum(self.grid.span(chunk).size_bytes for chunk in done)
        return done

    def claim(self, chunk: int, attempt: AttemptId, abort: Callable[[], None]) -> bool:
        """Become the chunk's writer; False if it has one or is stored. `abort` ends the claimer."""
        with self._changed:
            if chunk in self._claims or chunk in self._done:
                return False
            self._claims[chunk] = (attempt, abort)
            return True

    def revoked(self, chunk: int, attempt: AttemptId) -> bool:
        """Whether a faster attempt waits for this claim."""
        return (chunk, attempt) in self._revoked

    def release(self, chunk: int, attempt: AttemptId, *, stored: bool) -> None:
        """Let go of a claim. Harmless for a chunk one does not hold."""
        with self._changed:
            holder = self._claims.get(chunk)
            if holder is None or holder[0] != attempt:
                return
            del self._claims[chunk]
            self._revoked.discard((chunk, attempt))
            if stored:
                self._done.add(chunk)
            self._changed.notify_all()

    def take_over(self, chunk: int, attempt: AttemptId, abort: Callable[[], None]) -> bool:
        """Claim a chunk that somebody may be writing: stop them first. False when it is stored.

        Raises StoreError when the holder does not let go, which only a hung disk can cause.
        """
        with self._changed:
            holder = self._claims.get(chunk)
            if holder is not None:
                self._revoked.add((chunk, holder[0]))
                holder[1]()
            if not self._changed.wait_for(lambda: chunk not in self._claims, CLAIM_WAIT_S):
                raise StoreError(f"a write to {self.file.path} has hung for {CLAIM_WAIT_S:.0f} s")
            if chunk in self._done:
                return False
            self._claims[chunk] = (attempt, abort)
            return True

    # What others may have of it before it is complete

    def coming(self, chunk: int, count: int) -> None:
        """An attempt that reads the chunk from who vouches for it begins (1) or ends (-1)."""
        with self._changed:
            left = self._coming.get(chunk, 0) + count
            if left > 0:
                self._coming[chunk] = left
            else:
                self._coming.pop(chunk, None)

    def relayed(self) -> frozenset[int]:
        """Stored chunks that others may not have: who gave them could not vouch for them."""
        with self._changed:
            return frozenset(self._done - self._served)

    def serve(self, chunk: int) -> None:
        """Others may have a stored chunk from now on."""
        with self._changed:
            self._served.add(chunk)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come by this job: let those go who wait for its chunks."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_served(
        self, span: ByteRange, wait_s: float, gone: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until others may have all of `span`; False if that does not come to be in time.

        gone: asked every now and then, and quick: whether nobody waits for it any more.
        """
        chunks = set(self.grid.covering(span))
        until_s = monotonic() + wait_s
        with self._changed:
            while not self._closed and not chunks <= self._served:
                left_s = until_s - monotonic()
                if left_s <= 0 or gone():
                    return False
                self._changed.wait(min(left_s, LOOK_S))
            return not self._closed

    def has(self, span: ByteRange) -> bool:
        """Whether all chunks of `span` are stored, each as its hash or its origin says."""
        with self._changed:
            return self._done.issuperset(self.grid.covering(span))

    def missing(self, span: ByteRange) -> list[int]:
        """Chunks of `span` that are not stored."""
        with self._changed:
            return [chunk for chunk in self.grid.covering(span) if chunk not in self._done]

    def unserved(self, span: ByteRange) -> list[int]:
        """Chunks of `span` that others may not have yet."""
        with self._changed:
            return [chunk for chunk in self.grid.covering(span) if chunk not in self._served]

    def holding(self) -> Holding:
        """What others may ask for."""
        with self._changed:
            chunks = bitmap(self._served | self._coming.keys(), self.grid.count)
        return Holding(self.file.blob, HoldingState.FETCHING, self.grid, chunks)

    def nothing(self) -> Holding:
        """What others may ask for when it is not fetched any more."""
        return Holding(self.file.blob, HoldingState.NONE, self.grid)

    def lose(self, chunks: list[int]) -> None:
        """These chunks are not stored after all."""
        with self._changed:
            self._done.difference_update(chunks)
            self._served.difference_update(chunks)
        if self.writer is not None:
            self.writer.forget_chunks(chunks)
        self.stored_bytes -= sum(self.grid.span(chunk).size_bytes for chunk in chunks)
