"""Checking one published checksum over several blobs: a tar layer whose members are our files.

Its members are fetched, written and resumed like any blob. What differs: they are hashed as one
sequence, with the bytes between them, and none is published before the last of them is here and
the checksum holds. Between processes the first member's lock stands for all (see the engine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.domain.manifests import Assembly, BlobId
from modelcache.domain.ranges import CHUNK_BYTES_DEFAULT, ChunkGrid
from modelcache.store import BlobWriter
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.checks import ChunkHash, new_hash
from modelcache.transfer.frontier import Frontier, PublishedBlob


@dataclass(frozen=True, slots=True)
class AssemblyParts:
    """An assembly of which some blobs are wanted. present: the others, path and size in bytes."""

    assembly: Assembly
    present: Mapping[BlobId, tuple[Path, int]] = field(default_factory=dict)


class AssemblyCheck:
    """The check of all wanted blobs of one assembly."""

    def __init__(self, parts: AssemblyParts, pool: BufferPool) -> None:
        self.name = f"{parts.assembly.checksum.algorithm.value}-layer"
        self.label = parts.assembly.label
        self._checksum = parts.assembly.checksum
        self._wanted = frozenset(parts.assembly.blobs) - parts.present.keys()
        self._arrived: set[BlobId] = set()
        self._frontier = Frontier(parts.assembly.pieces, pool, self._update)
        for blob, (path, size_bytes) in parts.present.items():
            self._frontier.open(
                blob, PublishedBlob(path, ChunkGrid(size_bytes, CHUNK_BYTES_DEFAULT))
            )
        self._restart()

    def member(self, writer: BlobWriter) -> MemberCheck:
        """The check of one blob; its writer stays open until all of them are here."""
        self._frontier.open(writer.blob, writer)
        return MemberCheck(self, writer)

    def stored(self, blob: BlobId, chunk: int, blocks: list[Block]) -> None:
        """A chunk of a member is in the store; see BlobCheck."""
        self._frontier.stored(blob, chunk, blocks)

    def complete(self, blob: BlobId) -> bool:
        """All chunks of a member are stored; whether that was the last one. The caller locks."""
        self._arrived.add(blob)
        return self._arrived == self._wanted

    def holds(self) -> bool:
        """Whether the checksum holds; all are here. If not, every wanted blob comes anew."""
        self._frontier.finish()
        if self._hash.hexdigest() == self._checksum.value:
            return True
        self._frontier.restart(self._restart)
        self._arrived.clear()
        return False

    def _restart(self) -> None:
        self._hash = new_hash(self._checksum.algorithm, 0)

    def _update(self, view: memoryview) -> None:
        self._hash.update(view)


class MemberCheck:
    """See BlobCheck: one member's part of the work. Alone it can find nothing bad."""

    in_order = True

    def __init__(self, whole: AssemblyCheck, writer: BlobWriter) -> None:
        self.name: str | None = whole.name
        self._whole = whole
        self._blob = writer.blob
        self._grid = writer.grid

    def hasher(self, chunk: int) -> ChunkHash:
        """See BlobCheck."""
        return ChunkHash(self._grid.span(chunk).start)

    def stored(self, chunk: int, hashed: ChunkHash, blocks: list[Block]) -> None:
        """See BlobCheck."""
        del hashed
        self._whole.stored(self._blob, chunk, blocks)

    def bad_chunks(self, writer: BlobWriter) -> list[int] | None:
        """See BlobCheck. The engine asks the whole."""
        del writer
        return None
