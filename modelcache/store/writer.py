"""One blob under way: written in place at its final offsets, journalled chunk by chunk.

A writer holds the blob's lock, which dies with the process, so a blob has one writer on the node.
Whatever moment the process is killed at, the next writer finds every chunk that `finish_chunk`
returned for. The blob becomes visible by one rename, in `publish`.

A writer may be closed, or its blob published, while a worker that was given up still hangs in a
write: the descriptor and the lock then stay until that write is over, so that its bytes can land
neither in a file opened since under the same number, nor under the hands of the next holder.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, StrEnum
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import BlobBusy, StoreError
from modelcache.store import files, hashing, partials, receipts
from modelcache.store.journal import ChunkRecord, Journal
from modelcache.store.layout import Layout
from modelcache.store.receipts import Receipt

BLOB_MODE: Final = 0o444
_PARTIAL_MODE: Final = 0o600


class WriteMode(StrEnum):
    """Past the page cache or through it."""

    DIRECT = "direct"
    BUFFERED = "buffered"


class _State(Enum):
    OPEN = "open"
    SEALED = "sealed"  # being published or discarded
    CLOSED = "closed"


class BlobWriter:
    """See the module. Thread-safe: several workers write different chunks at once."""

    def __init__(
        self,
        layout: Layout,
        blob: BlobId,
        grid: ChunkGrid,
        mode: WriteMode,
        *,
        replace: bool = False,
    ) -> None:
        """Take the blob's lock and continue what is there.

        grid: used for a new partial; one that is continued keeps its own. replace: begin even
        though the blob is visible. Chunks that an earlier start of the machine left are hashed
        again first, at the speed of the disk. Raises BlobBusy when another holder fetches the blob
        or has just finished it, and StoreFull when there is no room for it.
        """
        self.blob = blob
        self._layout = layout
        self._folder = layout.partial_blob(blob)
        self._data = self._folder / partials.DATA
        self._guard = threading.Condition()
        self._using = 0
        self._state = _State.OPEN
        self._published: Path | None = None
        self._linked = False  # the data is somebody else's file, too: not to be changed
        self.shared = False
        with files.translated(self._folder):
            lock_fd = partials.take(layout, blob)
            if lock_fd is None:
                raise BlobBusy(f"{blob} is being fetched by another process")
            self._lock_fd = lock_fd
            try:
                self._journal = self._start(grid, replace=replace)
            except BaseException:
                os.close(lock_fd)
                raise
            try:
                self._fd, self.direct = self._open_data(mode)
            except BaseException:
                self._journal.close()
                os.close(lock_fd)
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
        StoreFull, StoreReadOnly, StoreError; the chunk does not count until `finish_chunk`, and no
        more if it did.
        """
        if self.shared:
            return
        padded = length
        if self.direct:
            padded = -(-length // files.ALIGNMENT) * files.ALIGNMENT
            if padded != length:
                assert offset + length == self.grid.size_bytes, "padding in mid-blob"  # noqa: S101
                buffer[length:padded] = bytes(padded - length)
        with files.translated(self._data), self._in_use():
            chunk = offset // self.grid.chunk_bytes
            if chunk in self._journal.records:
                self.forget_chunks([chunk])
            if not self.direct or not self._write_direct(buffer[:padded], offset):
                files.pwrite_buffered(self._fd, buffer[:length], offset)

    def read(self, offset: int, buffer: memoryview, length: int) -> None:
        """Read bytes of stored chunks back into an aligned buffer of at least one block."""
        span = ByteRange(offset, offset + length)
        with files.translated(self._data), self._in_use():
            if not hashing.read_block(self._fd, span, buffer):
                raise OSError(errno.EIO, "shorter than what was written")

    def share(self, origin: Path, *, link: bool) -> bool:
        """Take a local file's bytes without copying; False where only copying is possible.

        By reflink, or with `link` as the very same file, which then must never be edited. Only
        for a partial with no chunk done, before other threads use the writer. Chunks still have to
        be read (`data_path`), hashed and finished; `write` has nothing to do any more.
        """
        if self.done:
            return False
        with files.translated(self._data), self._in_use():
            self.shared = self._link(origin) if link else self._clone(origin)
        return self.shared

    @property
    def data_path(self) -> Path:
        """Where the bytes are until they are published."""
        return self._data

    def relayed(self, chunk: int) -> bool:
        """Whether a stored chunk came from somebody who could not vouch for it."""
        return self._journal.records[chunk].relayed

    def finish_chunk(
        self, chunk: int, xxh3: bytes, crc: int | None, *, relayed: bool = False
    ) -> None:
        """Count a chunk as stored; its bytes were all written. Survives the process on return."""
        with files.translated(self._folder), self._guard:
            self._check_open()
            self._journal.add(chunk, ChunkRecord(xxh3, crc, relayed))

    def forget_chunks(self, chunks: Iterable[int]) -> None:
        """Stop counting these chunks."""
        with files.translated(self._folder), self._guard:
            self._check_open()
            for chunk in chunks:
                if chunk in self._journal.records:
                    self._journal.forget(chunk)

    def publish(self, *, verified: str | None) -> Path:
        """Make the blob visible. Durable on return; all chunks must be stored. Idempotent.

        The order is what a crash may cut: size, receipt and mode, all of it to the disk, the name.
        A crash before the rename leaves a complete partial that the next pull publishes at once.
        When the disk fails to take the data, the next writer hashes it before it believes it.
        """
        if not self._seal():
            if self._published is None:
                raise self._closed_error()
            return self._published
        try:
            records = self._journal.records
            assert len(records) == self.grid.count, "publish before the last chunk"  # noqa: S101
            hashes = tuple(records[chunk].xxh3 for chunk in range(self.grid.count))
            receipt = Receipt(self.grid.size_bytes, self.grid.chunk_bytes, hashes, verified)
            target = self._layout.blob(self.blob)
            with files.translated(target):
                self._show(target, receipt)
        except BaseException:
            self._unseal()
            raise
        self._published = target
        self._finish()
        return target

    def close(self) -> None:
        """Release the lock and keep the partial, once writes under way are over. Idempotent."""
        with self._guard:
            while self._state is _State.SEALED:
                self._guard.wait()
            if self._state is _State.OPEN:
                self._state = _State.CLOSED
                if not self._using:
                    self._release()

    def discard(self) -> None:
        """Delete the partial and release the lock. Idempotent."""
        if self._seal():
            self._finish()

    # Who may use the descriptor

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the descriptor open for one read or write."""
        with self._guard:
            self._check_open()
            self._using += 1
        try:
            yield
        finally:
            with self._guard:
                self._using -= 1
                if not self._using:
                    self._guard.notify_all()
                    if self._state is _State.CLOSED:
                        self._release()

    def _seal(self) -> bool:
        """Bar reads and writes and wait for the last to end; False if the writer is closed."""
        with self._guard:
            while self._state is _State.SEALED:
                self._guard.wait()
            if self._state is _State.CLOSED:
                return False
            self._state = _State.SEALED
            try:
                while self._using:
                    self._guard.wait()
            except BaseException:
                self._state = _State.OPEN
                raise
            return True

    def _unseal(self) -> None:
        with self._guard:
            self._state = _State.OPEN
            self._guard.notify_all()

    def _finish(self) -> None:
        """Remove the partial of a sealed writer and close it."""
        try:
            with files.translated(self._folder):
                partials.remove(self._layout, self.blob)
        finally:
            with self._guard:
                self._state = _State.CLOSED
                self._release()
                self._guard.notify_all()

    def _check_open(self) -> None:
        if self._state is not _State.OPEN:
            raise self._closed_error()

    def _closed_error(self) -> StoreError:
        return StoreError(f"{self.blob} was closed while somebody was still writing it")

    def _release(self) -> None:
        os.close(self._fd)
        self._journal.close()
        os.close(self._lock_fd)

    # Steps

    def _write_direct(self, data: memoryview, offset: int) -> bool:
        """False, now and from now on, where the filesystem wants other alignments."""
        try:
            files.pwrite_all(self._fd, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            files.clear_direct(self._fd)  # opened past the page cache, then refused
            self.direct = False
            return False
        return True

    def _show(self, target: Path, receipt: Receipt) -> None:
        files.ensure_folder(target.parent)
        if not self._linked:
            os.ftruncate(self._fd, self.grid.size_bytes)
        packed = receipt.of(os.fstat(self._fd)).to_bytes()
        attached = False
        if not self._linked:
            attached = receipts.attach(self._fd, packed)
            os.fchmod(self._fd, BLOB_MODE)
        try:
            files.fsync(self._fd)
        except OSError:
            # The kernel drops pages that it could not write and reports it once: a second fsync
            # would succeed over lost data.
            with suppress(OSError):
                self._journal.doubt()
            self._journal.records.clear()
            raise
        if not attached:
            receipts.write_file(self._layout.receipt(self.blob), packed)
        files.rename(self._data, target)
        files.fsync_directory(target.parent)

    def _start(self, grid: ChunkGrid, *, replace: bool) -> Journal:
        """Continue what is there, or begin anew. The caller holds the lock."""
        journal = self._continue(grid.size_bytes)
        if journal is not None:
            return journal
        if not replace and self._is_visible(grid.size_bytes):
            partials.remove(self._layout, self.blob)
            raise BlobBusy(f"{self.blob} has just been fetched by another process")
        return self._begin(grid)

    def _is_visible(self, size_bytes: int) -> bool:
        try:
            return self._layout.blob(self.blob).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def _begin(self, grid: ChunkGrid) -> Journal:
        """A new partial: first the room, then the journal that makes it count."""
        files.unlink(self._folder / partials.JOURNAL)
        files.unlink(self._data)  # it may be a link to a user's file: never truncate it
        try:
            fd = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PARTIAL_MODE)
            try:
                files.preallocate(fd, grid.size_bytes)
            finally:
                os.close(fd)
            return Journal.create(self._folder / partials.JOURNAL, self.blob, grid)
        except OSError:
            partials.remove(self._layout, self.blob)  # give back what room it got
            raise

    def _continue(self, size_bytes: int) -> Journal | None:
        """The journal of what is there, with chunks that can be believed; None to begin anew."""
        try:
            status = self._data.stat()
        except FileNotFoundError:
            return None
        if status.st_size < size_bytes or status.st_nlink > 1:
            return None  # cut behind our back, or a user's file
        if not status.st_mode & stat.S_IWUSR:  # a publish was cut between mode and name
            self._data.chmod(_PARTIAL_MODE)
        journal = Journal.open(self._folder / partials.JOURNAL, self.blob, size_bytes)
        if journal is None or journal.trusted:
            return journal
        try:
            return self._proven(journal)
        finally:
            journal.close()

    def _proven(self, journal: Journal) -> Journal:
        """A new journal of the chunks that the disk really has."""
        found = hashing.chunk_hashes(self._data, journal.grid, journal.records)
        path = self._folder / "journal.new"
        proven = Journal.create(path, self.blob, journal.grid)
        try:
            for chunk, record in journal.records.items():
                if found[chunk] == record.xxh3:
                    proven.add(chunk, record)
            files.rename(path, self._folder / partials.JOURNAL)
        except BaseException:
            proven.close()
            raise
        return proven

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
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return os.open(self._data, flags), False  # a filesystem without: through the page cache
