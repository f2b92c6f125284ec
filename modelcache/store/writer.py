"""One blob under way: written in place at its final offsets, journalled chunk by chunk.

A writer holds the blob's lock, which dies with the process, so a blob has one writer on the node.
Whatever moment the process is killed at, the next writer finds every chunk that `finish_chunk`
returned for. The blob becomes visible by one rename, in `publish`.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.errors import BlobBusy
from modelcache.store import files, hashing, receipts
from modelcache.store.journal import ChunkRecord, Journal, boot_id
from modelcache.store.layout import Layout
from modelcache.store.receipts import Receipt

BLOB_MODE: Final = 0o444


class WriteMode(StrEnum):
    """Past the page cache or through it."""

    DIRECT = "direct"
    BUFFERED = "buffered"


class BlobWriter:
    """See the module. Thread-safe: several workers write different chunks at once."""

    def __init__(self, layout: Layout, blob: BlobId, grid: ChunkGrid, mode: WriteMode) -> None:
        """Take the blob's lock and continue what is there.

        grid: used for a new partial; one that is continued keeps its own. Raises BlobBusy, and
        StoreFull when there is no room for the blob.
        """
        self.blob = blob
        self._layout = layout
        self._folder = layout.partial_blob(blob)
        self._data = self._folder / "data"
        self._guard = threading.Lock()
        self._lock_fd: int | None = None
        self._linked = False  # the data is somebody else's file, too: not to be changed
        self.shared = False
        with files.translated(self._folder):
            self._lock_fd = self._lock()
            try:
                self._journal = self._continue(grid) or self._begin(grid)
                self._fd, self.direct = self._open_data(mode)
            except BaseException:
                os.close(self._lock_fd)
                raise
        self.grid = self._journal.grid

    @property
    def done(self) -> frozenset[int]:
        """Chunks stored so far."""
        with self._guard:
            return frozenset(self._journal.records)

    def is_done(self, chunk: int) -> bool:
        """Whether a chunk is stored."""
        return chunk in self._journal.records

    def crc(self, chunk: int) -> int | None:
        """The CRC that came with a stored chunk."""
        return self._journal.records[chunk].crc

    def chunk_hash(self, chunk: int) -> bytes:
        """XXH3-128 of a stored chunk."""
        return self._journal.records[chunk].xxh3

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Write `buffer[:length]` at `offset`.

        Direct writes need `offset` and the buffer's address aligned to 4 KiB; the tail of the
        blob is padded with zeros inside the buffer, for which it must have room. Raises
        StoreFull, StoreReadOnly, StoreError; the chunk does not count until `finish_chunk`.
        """
        if self.shared:
            return
        if self.direct:
            padded = -(-length // files.ALIGNMENT) * files.ALIGNMENT
            if padded != length:
                buffer[length:padded] = bytes(padded - length)
            length = padded
        with files.translated(self._data):
            files.pwrite_all(self._fd, buffer[:length], offset)

    def read(self, offset: int, buffer: memoryview, length: int) -> None:
        """Read bytes of stored chunks back into an aligned buffer."""
        wanted = -(-length // files.ALIGNMENT) * files.ALIGNMENT if self.direct else length
        with files.translated(self._data):
            size = os.preadv(self._fd, [buffer[:wanted]], offset)
            if size < length:
                raise OSError(5, "shorter than what was written")

    def share(self, origin: Path, *, link: bool) -> bool:
        """Take a local file's bytes without copying; False where only copying is possible.

        By reflink, or with `link` as the very same file, which then must never be edited. Only
        for a partial with no chunk done. Chunks still have to be read (`data_path`), hashed and
        finished; `write` has nothing to do any more.
        """
        if self.done:
            return False
        with files.translated(self._data):
            self.shared = self._link(origin) if link else self._clone(origin)
        return self.shared

    @property
    def data_path(self) -> Path:
        """Where the bytes are until they are published."""
        return self._data

    def finish_chunk(self, chunk: int, xxh3: bytes, crc: int | None) -> None:
        """Count a chunk as stored; its bytes were all written. Survives the process on return."""
        with files.translated(self._folder), self._guard:
            self._journal.add(chunk, ChunkRecord(xxh3, crc))

    def forget_chunks(self, chunks: list[int]) -> None:
        """Stop counting these chunks."""
        with files.translated(self._folder), self._guard:
            for chunk in chunks:
                if chunk in self._journal.records:
                    self._journal.forget(chunk)

    def publish(self, *, verified: str | None) -> Path:
        """Make the blob visible. Durable on return; all chunks must be stored.

        The order is what a crash may cut: size and mode, receipt, data to the disk, the name. A
        crash before the rename leaves a complete partial that the next pull publishes at once.
        """
        with self._guard:
            records = self._journal.records
            assert len(records) == self.grid.count, "publish before the last chunk"  # noqa: S101
            hashes = tuple(records[chunk].xxh3 for chunk in range(self.grid.count))
        target = self._layout.blob(self.blob)
        receipt = Receipt(self.grid.size_bytes, self.grid.chunk_bytes, hashes, verified)
        with files.translated(target):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            if not self._linked:
                os.ftruncate(self._fd, self.grid.size_bytes)
                os.fchmod(self._fd, BLOB_MODE)
            receipt = receipt.of(os.fstat(self._fd))
            if self._linked or not receipts.attach(self._fd, receipt):
                receipts.write_file(self._layout.receipt(self.blob), receipt)
            files.fsync(self._fd)
            files.rename(self._data, target)
            files.fsync_directory(target.parent)
        self.discard()
        return target

    def close(self) -> None:
        """Release the lock and keep the partial. Idempotent."""
        if self._lock_fd is None:
            return
        os.close(self._fd)
        self._journal.close()
        os.close(self._lock_fd)
        self._lock_fd = None

    def discard(self) -> None:
        """Delete the partial and release the lock. Idempotent."""
        if self._lock_fd is None:
            return
        with files.translated(self._folder):
            # The lock goes last: until then nobody else can begin in this folder.
            for name in ("data", "journal", "lock"):
                files.unlink(self._folder / name)
            with suppress(OSError):  # somebody has the next lock already: the folder is theirs
                self._folder.rmdir()
        self.close()

    def _lock(self) -> int:
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = files.lock_file(self._folder / "lock", wait=False)
            except FileNotFoundError:
                continue  # a writer that has just finished took the folder with it
            if fd is None:
                raise BlobBusy(f"{self.blob} is being fetched by another process")
            return fd

    def _begin(self, grid: ChunkGrid) -> Journal:
        """A new partial: first the room, then the journal that makes it count."""
        files.unlink(self._folder / "journal")
        files.unlink(self._data)  # it may be a link to a user's file: never truncate it
        fd = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 0)
            files.preallocate(fd, grid.size_bytes)
        except OSError:
            files.unlink(self._data)
            raise
        finally:
            os.close(fd)
        return Journal.create(self._folder / "journal", self.blob, grid)

    def _continue(self, grid: ChunkGrid) -> Journal | None:
        journal = Journal.open(self._folder / "journal", self.blob, grid.size_bytes)
        if journal is None:
            return None
        if not self._data.exists() or self._data.stat().st_nlink > 1:  # gone, or a user's file
            journal.close()
            return None
        if journal.boot == boot_id():
            return journal
        return self._rebooted(journal)

    def _rebooted(self, journal: Journal) -> Journal:
        """Keep the chunks that reached the disk before the machine went down."""
        found = hashing.chunk_hashes(self._data, journal.grid, journal.records)
        kept = {
            chunk: record
            for chunk, record in journal.records.items()
            if found[chunk] == record.xxh3
        }
        journal.close()
        fresh = Journal.create(self._folder / "journal.new", self.blob, journal.grid)
        for chunk, record in kept.items():
            fresh.add(chunk, record)
        files.rename(self._folder / "journal.new", self._folder / "journal")
        return fresh

    def _clone(self, origin: Path) -> bool:
        source = os.open(origin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return files.clone(source, self._fd)
        finally:
            os.close(source)

    def _link(self, origin: Path) -> bool:
        temporary = self._folder / "data.link"
        files.unlink(temporary)
        try:
            files.link(origin, temporary)
        except OSError:
            return self._clone(origin)  # another filesystem, or links not permitted
        files.rename(temporary, self._data)
        os.close(self._fd)
        self._fd = os.open(self._data, os.O_RDONLY | os.O_CLOEXEC)
        self.direct = False
        self._linked = True
        return True

    def _open_data(self, mode: WriteMode) -> tuple[int, bool]:
        flags = os.O_RDWR | os.O_CLOEXEC
        if mode is WriteMode.DIRECT:
            try:
                return os.open(self._data, flags | os.O_DIRECT), True
            except OSError:
                pass  # tmpfs before 6.x, some network filesystems: through the page cache then
        return os.open(self._data, flags), False
