"""One blob under way: its file, its writer, its check, and who may write which chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from modelcache.domain.manifests import File
from modelcache.domain.ranges import ChunkGrid
from modelcache.errors import ModelcacheError, StoreError
from modelcache.planner import AttemptId, SourceId
from modelcache.sources.source import Source, Target
from modelcache.store import BlobWriter
from modelcache.transfer.assemblies import AssemblyCheck
from modelcache.transfer.checks import BlobCheck, Sink

CLAIM_WAIT_S: Final = 60.0  # a revoked holder stops at its next block; a disk write may be slow
_MARGIN_S: Final = 5.0  # a signature this close to its end is renewed


class BlobJob:
    """What the engine knows of one blob. Chunk claims make sure that a chunk has one writer.

    An attempt claims a chunk before it writes the first byte of it. A hedge that has the whole
    chunk in memory revokes the claim, waits until its holder has let go, and writes: so bytes of
    two attempts never mix in one chunk.
    """

    def __init__(
        self, file: File, grid: ChunkGrid, source: Source, source_id: SourceId, *, small: bool
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
        self._target: tuple[float, Target] | None = None
        self._claims: dict[int, tuple[AttemptId, Callable[[], None]]] = {}
        self._revoked: set[tuple[int, AttemptId]] = set()
        self._done: set[int] = set()
        self._changed = threading.Condition()

    def target(self, *, fresh: bool) -> Target:
        """The located file, located again when asked to or when the last one grows old."""
        now_s = monotonic()
        if fresh or self._target is None or self._target[0] <= now_s:
            target = self.source.locate(self.file, fresh=fresh)
            good_for_s = getattr(target, "good_for_s", 0.0)
            self._target = (now_s + good_for_s - _MARGIN_S, target)
        return self._target[1]

    def resume(self, writer: BlobWriter) -> frozenset[int]:
        """Take over what an earlier pull stored, and its grid; returns the chunks."""
        done = writer.done
        self.grid = writer.grid
        with self._changed:
            self._done.update(done)
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

    def lose(self, chunks: list[int]) -> None:
        """These chunks are not stored after all."""
        with self._changed:
            self._done.difference_update(chunks)
        if self.writer is not None:
            self.writer.forget_chunks(chunks)
        self.stored_bytes -= sum(self.grid.span(chunk).size_bytes for chunk in chunks)
