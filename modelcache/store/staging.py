"""Files whose names are known only when their last byte is: members of a layer being unpacked.

They are written in blocks into a folder that belongs to this process by a lock, hashed on the way
(SHA-256 for the name, XXH3-128 for the receipt), and become blobs in `publish`, all together. What
a killed process leaves is removed by the next one that opens the store: the layer is still there,
and makes them again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId
from modelcache.store import files, hashing, locks, receipts
from modelcache.store.layout import RECEIPT_SUFFIX, UNPACK_PREFIX, Layout
from modelcache.store.writer import BLOB_MODE, WriteMode

SYNC_EACH_MAX: Final = 64  # files; beyond, one sync of the whole filesystem is cheaper
_LOCK: Final = "lock"
_VERIFIED: Final = "sha256"  # a member is named by it, and the layer's own digest held
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Staged:
    """A whole file in the staging folder. apart: its receipt is a file beside it."""

    path: str
    blob: BlobId
    size_bytes: int
    apart: bool


class StagingFolder:
    """See the module. One file is open at a time; one thread at a time."""

    def __init__(self, layout: Layout, chunk_bytes: int) -> None:
        """Make the folder and lock it. Raises StoreFull, StoreReadOnly, StoreError."""
        self._layout = layout
        self._chunk_bytes = chunk_bytes
        self._count = 0
        self._current: StagedFile | None = None
        self._block = hashing.new_buffer()
        self._folder, self._lock_fd = _make(layout)

    def begin(self, size_bytes: int, mode: WriteMode) -> StagedFile:
        """Open a file that will have `size_bytes`. Raises StoreFull when there is no room."""
        self._count += 1
        path = f"{self._folder}/{self._count}"
        self._current = StagedFile(path, size_bytes, self._chunk_bytes, mode, self._block)
        return self._current

    def close(self) -> None:
        """Remove the folder and what was not published, a file under way too. Idempotent."""
        if self._lock_fd < 0:
            return
        try:
            with files.translated(self._folder):
                if self._current is not None:
                    self._current.abandon()
                _remove(self._folder)
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1


class StagedFile:
    """One file under way; `write` all its bytes in order, then `finish`, or `abandon` it."""

    def __init__(
        self, path: str, size_bytes: int, chunk_bytes: int, mode: WriteMode, block: memoryview
    ) -> None:
        """block: lent until `finish` or `abandon`; aligned, BLOCK_BYTES long."""
        self._path = path
        self._size = size_bytes
        self._chunk_bytes = chunk_bytes
        self._block = block
        self._step = min(BLOCK_BYTES, chunk_bytes)  # of these two, the larger is a multiple
        self._filled = 0  # of the block
        self._offset = 0  # of the block in the file
        self._sha256 = hashlib.sha256(usedforsecurity=False)
        self._xxh3 = xxhash.xxh3_128()
        self._hashes: list[bytes] = []
        self._direct = mode is WriteMode.DIRECT and size_bytes > BLOCK_BYTES
        with files.translated(path):
            self._fd = self._open()

    def write(self, view: memoryview) -> None:
        """Take the next bytes; not more than were announced. Raises StoreFull, StoreError."""
        while len(view):
            size = min(len(view), self._step - self._filled)
            self._block[self._filled : self._filled + size] = view[:size]
            self._filled += size
            view = view[size:]
            if self._filled == self._step:
                self._flush()

    def finish(self) -> Staged:
        """All bytes were written. The file is not durable yet: `publish` sees to that."""
        self._flush()
        assert self._offset == self._size, "not the announced size"  # noqa: S101
        if self._size % self._chunk_bytes:
            self._hashes.append(self._xxh3.digest())
        with files.translated(self._path):
            apart = self._seal()
        os.close(self._fd)
        self._fd = -1
        return Staged(self._path, BlobId(f"sha256-{self._sha256.hexdigest()}"), self._size, apart)

    def abandon(self) -> None:
        """Delete the file. Idempotent, and harmless after `finish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            files.unlink(self._path)

    def _open(self) -> int:
        fd = self._create()
        try:
            if self._size > BLOCK_BYTES:
                files.preallocate(fd, self._size)
        except BaseException:
            os.close(fd)
            files.unlink(self._path)  # give back what room it got
            raise
        return fd

    def _create(self) -> int:
        if self._direct:
            try:
                return os.open(self._path, _FLAGS | os.O_DIRECT, 0o600)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                files.unlink(self._path)  # some filesystems refuse only after making it
                self._direct = False
        return os.open(self._path, _FLAGS, 0o600)

    def _flush(self) -> None:
        size, self._filled = self._filled, 0
        if not size:
            return
        view = self._block[:size]
        self._sha256.update(view)
        self._xxh3.update(view)
        with files.translated(self._path):
            self._write(view)
        self._offset += size
        if self._offset % self._chunk_bytes == 0:
            self._hashes.append(self._xxh3.digest())
            self._xxh3.reset()

    def _write(self, view: memoryview) -> None:
        if self._direct:
            padded = -(-len(view) // files.ALIGNMENT) * files.ALIGNMENT
            self._block[len(view) : padded] = bytes(padded - len(view))
            try:
                files.pwrite_all(self._fd, self._block[:padded], self._offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                files.clear_direct(self._fd)  # opened past the page cache, then refused
                self._direct = False
            else:
                return
        files.pwrite_buffered(self._fd, view, self._offset)

    def _seal(self) -> bool:
        """Size, receipt, mode. True if the receipt is a file of its own."""
        if self._size > BLOCK_BYTES:
            os.ftruncate(self._fd, self._size)  # what padding or preallocation went beyond
        status = os.fstat(self._fd)
        packed = receipts.pack(
            self._size,
            self._chunk_bytes,
            b"".join(self._hashes),
            _VERIFIED,
            mtime_ns=status.st_mtime_ns,
            inode=status.st_ino,
        )
        attached = receipts.attach(self._fd, packed)
        os.fchmod(self._fd, BLOB_MODE)
        if not attached:
            Path(self._path + RECEIPT_SUFFIX).write_bytes(packed)
        return not attached


def publish(
    layout: Layout, staged: Iterable[Staged], *, replace: Collection[BlobId] = frozenset()
) -> int:
    """Make staged files durable, then visible as blobs; returns the bytes that are new here.

    A blob that is here already is left as it is, unless it is one to `replace`. A manifest must
    list the blobs before, or they are garbage. Raises StoreError; what was shown until then stays.
    """
    chosen: dict[BlobId, Staged] = {}
    for item in staged:
        if item.blob in replace or not _is_here(layout, item):
            chosen.setdefault(item.blob, item)
    if not chosen:
        return 0
    with files.translated(layout.blobs):
        targets = {layout.blob(blob): item for blob, item in chosen.items()}
        for folder in sorted({target.parent for target in targets}):
            with suppress(FileExistsError):
                files.make_folder(folder, 0o700)  # durable with what comes into it
        _sync_files(layout, list(targets.values()))
        for target, item in targets.items():
            _show(layout, item, target, replace=item.blob in replace)
        _sync_folders(layout, sorted({target.parent for target in targets}))
    return sum(item.size_bytes for item in chosen.values())


def sweep(layout: Layout) -> None:
    """Remove the folders of processes that are gone. Leaves those of living ones alone."""
    for folder in layout.partial.glob(f"{UNPACK_PREFIX}*"):
        with suppress(FileNotFoundError, NotADirectoryError):  # somebody else removes it
            fd = locks.lock_file(folder / _LOCK, wait=False)
            if fd is not None:
                try:
                    _remove(str(folder))
                finally:
                    os.close(fd)


def staged_bytes(layout: Layout) -> tuple[int, int]:
    """What lies in all staging folders: bytes promised, and bytes the filesystem has given."""
    size = allocated = 0
    for path in layout.partial.glob(f"{UNPACK_PREFIX}*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            size += max(status.st_size, status.st_blocks * 512)
            allocated += status.st_blocks * 512
    return size, allocated


def _is_here(layout: Layout, item: Staged) -> bool:
    try:
        return layout.blob(item.blob).stat().st_size == item.size_bytes
    except FileNotFoundError:
        return False


def _sync_files(layout: Layout, staged: Sequence[Staged]) -> None:
    if len(staged) > SYNC_EACH_MAX:
        _sync_all(layout)
        return
    for item in staged:
        files.fsync_file(item.path)
        if item.apart:
            files.fsync_file(item.path + RECEIPT_SUFFIX)


def _show(layout: Layout, item: Staged, target: Path, *, replace: bool) -> None:
    if not item.apart:
        files.rename(item.path, target)
        return
    # A receipt without its blob looks like garbage to whoever collects that; and of two processes
    # with the same blob, one must not show its file with the other's receipt.
    with locks.mutex(layout):
        if replace or not _is_here(layout, item):
            files.rename(item.path + RECEIPT_SUFFIX, layout.receipt(item.blob))
            files.rename(item.path, target)


def _sync_folders(layout: Layout, folders: Sequence[Path]) -> None:
    if len(folders) > SYNC_EACH_MAX:
        _sync_all(layout)
        return
    for folder in folders:
        files.fsync_directory(folder)
    files.fsync_directory(layout.blobs)


def _sync_all(layout: Layout) -> None:
    fd = files.open_directory(layout.blobs)
    try:
        files.sync_filesystem(fd)
    finally:
        os.close(fd)


def _make(layout: Layout) -> tuple[str, int]:
    """A new folder and its lock. Whoever sweeps may remove it in between: again."""
    with files.translated(layout.partial):
        while True:
            name = f"{UNPACK_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            folder = layout.partial / name
            files.make_folder(folder, 0o700)
            with suppress(FileNotFoundError):
                fd = locks.lock_file(folder / _LOCK, wait=True)
                assert fd is not None, "waited for"  # noqa: S101
                return str(folder), fd


def _remove(folder: str) -> None:
    """The lock goes last: until then nobody takes the folder for left over."""
    for name in os.listdir(folder):  # noqa: PTH208 - thousands of names
        if name != _LOCK:
            files.unlink(f"{folder}/{name}")
    files.unlink(f"{folder}/{_LOCK}")
    with suppress(OSError):  # a sweep has made a lock anew, and removes the folder itself
        os.rmdir(folder)  # noqa: PTH106
