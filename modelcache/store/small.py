"""Small blobs: written whole, made durable and visible in groups.

Ten thousand configuration shards would cost ten thousand fsyncs one by one; here they share one
`syncfs` per group. A handful is synced one by one, because `syncfs` also waits for everything that
other programs have just written to this disk: two thirds of a second, once, for 1 GiB.

Until its group is committed a blob waits in a staging folder that belongs to this process; what a
killed process leaves there is adopted by the next one that opens the store, after its bytes were
compared with their receipt.

Costs of one blob of 64 KiB on ext4, in µs: create 13, write 16, receipt 4, mode and status 3, close
1, and 14 for the rename into place. What Python adds is kept small by plain strings and a
directory descriptor instead of paths.
"""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import xxhash

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId, is_blob_id
from modelcache.errors import StoreError
from modelcache.store import files, locks, receipts
from modelcache.store.layout import RECEIPT_SUFFIX, SMALL_PREFIX, Layout, fan_out
from modelcache.store.writer import BLOB_MODE

GROUP_BLOBS_MAX: Final = 4096  # a sync costs 5-20 ms here: under 1 % of the time of such a group
SYNC_EACH_MAX: Final = 64  # below, waiting for what others wrote to this disk would cost more
GROUP_BYTES_MAX: Final = 256 << 20  # bounds what a power cut can take
_LOCK: Final = "lock"
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class SmallBlobs:
    """See the module. `add` is thread-safe; `close` commits nothing."""

    def __init__(self, layout: Layout, chunk_bytes: int) -> None:
        self._layout = layout
        self._chunk_bytes = chunk_bytes
        self._guard = threading.Lock()
        self._staged: dict[BlobId, bool] = {}  # whether the receipt is a file of its own
        self._whole: set[BlobId] = set()  # written and checked, staged or committed
        self._staged_bytes = 0
        self._folders: set[str] = set()
        self._folder = ""
        self._folder_fd = -1
        self._lock_fd = -1

    def add(self, blob: BlobId, data: memoryview, *, xxh3: bytes, verified: str | None) -> None:
        """Stage one blob; visible after the next commit, unless it is staged already.

        data: at most one block. Raises StoreError, and then the blob is not staged.
        """
        size = len(data)
        assert size <= BLOCK_BYTES, "not a small blob"  # noqa: S101
        with self._guard:
            if not self._folder:
                self._open()
            if blob in self._staged:
                return
        with files.translated(self._layout.partial):
            try:
                apart = self._write(blob, data, xxh3 if size else b"", verified)
            except FileExistsError:
                return  # a hedge and its twin both brought it
        with self._guard:
            self._staged[blob] = apart
            self._whole.add(blob)
            self._staged_bytes += size
            full = len(self._staged) >= GROUP_BLOBS_MAX or self._staged_bytes >= GROUP_BYTES_MAX
        if full:
            self.commit()

    def open_staged(self, blob: BlobId) -> int | None:
        """A descriptor of a blob that waits for its commit, for whoever cannot wait with it.

        None for one that is not whole yet, or visible already. What it says was checked, but a
        power cut may still take it.
        """
        with self._guard:
            if not self._folder or blob not in self._whole:
                return None
            with suppress(FileNotFoundError):
                return os.open(blob, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder_fd)
        return None

    def commit(self) -> None:
        """Make everything staged so far durable, then visible.

        What cannot be made durable is thrown away, what cannot be shown stays staged: in both
        cases an error is raised, and nothing is exposed that the disk does not have.
        """
        with self._guard:
            staged, self._staged = self._staged, {}
            self._staged_bytes = 0
        if not staged:
            return
        try:
            with files.translated(self._layout.blobs):
                for blob in staged:
                    self._ensure_fan_out(blob)
                self._sync(staged)
                self._show(staged)
        finally:
            with self._guard:
                self._staged.update(staged)

    def close(self) -> None:
        """Let go of the staging folder; what was not committed is left for adoption.

        So is a folder that cannot be removed: what was committed is visible all the same.
        """
        with self._guard:
            if not self._folder:
                return
            if not self._staged:
                with suppress(OSError):
                    _remove_staging(Path(self._folder))
            os.close(self._folder_fd)
            os.close(self._lock_fd)
            self._folder = ""

    def _write(self, blob: BlobId, data: memoryview, hashes: bytes, verified: str | None) -> bool:
        """Write one blob into the staging folder; True if its receipt is a file beside it."""
        fd = os.open(blob, _FLAGS, 0o600, dir_fd=self._folder_fd)
        try:
            try:
                files.write_all(fd, data)
                status = os.fstat(fd)
                packed = receipts.pack(
                    len(data),
                    self._chunk_bytes,
                    hashes,
                    verified,
                    mtime_ns=status.st_mtime_ns,
                    inode=status.st_ino,
                )
                attached = receipts.attach(fd, packed)
                os.fchmod(fd, BLOB_MODE)
            finally:
                os.close(fd)
            if not attached:
                Path(self._folder, blob + RECEIPT_SUFFIX).write_bytes(packed)
        except OSError:
            _drop(self._folder, blob)
            raise
        return not attached

    def _sync(self, staged: dict[BlobId, bool]) -> None:
        try:
            if len(staged) > SYNC_EACH_MAX:
                files.sync_filesystem(self._folder_fd)
                return
            for blob, apart in staged.items():
                for name in (blob, blob + RECEIPT_SUFFIX) if apart else (blob,):
                    files.fsync_file(f"{self._folder}/{name}")
            files.fsync(self._folder_fd)
        except OSError:
            # The kernel reports lost pages once; a second sync would succeed over lost data.
            for blob in list(staged):
                _drop(self._folder, blob)
                del staged[blob]
            raise

    def _show(self, staged: dict[BlobId, bool]) -> None:
        """Rename blobs into place, removing from `staged` what is done."""
        blobs = str(self._layout.blobs)
        if any(staged.values()):
            # A receipt without its blob looks like garbage to whoever collects that.
            with locks.mutex(self._layout):
                for blob, apart in list(staged.items()):
                    target = f"{blobs}/{fan_out(blob)}/{blob}"
                    if apart:
                        source = f"{self._folder}/{blob}{RECEIPT_SUFFIX}"
                        files.rename(source, target + RECEIPT_SUFFIX)
                        staged[blob] = False
                    files.rename(f"{self._folder}/{blob}", target)
                    del staged[blob]
            return
        for blob in list(staged):
            files.rename(f"{self._folder}/{blob}", f"{blobs}/{fan_out(blob)}/{blob}")
            del staged[blob]

    def _open(self) -> None:
        """Make a staging folder and lock it. Whoever adopts may remove it in between: again."""
        with files.translated(self._layout.partial):
            while not self._folder:
                name = f"{SMALL_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
                folder = self._layout.partial / name
                files.make_folder(folder, 0o700)
                with suppress(FileNotFoundError):
                    lock_fd = locks.lock_file(folder / _LOCK, wait=True)
                    assert lock_fd is not None, "waited for"  # noqa: S101
                    self._lock_fd = lock_fd
                    self._folder_fd = files.open_directory(folder)
                    self._folder = str(folder)

    def _ensure_fan_out(self, blob: BlobId) -> None:
        name = fan_out(blob)
        if name not in self._folders:
            with suppress(FileExistsError):
                files.make_folder(self._layout.blobs / name, 0o700)  # the group's sync keeps it
            self._folders.add(name)


def adopt(layout: Layout) -> int:
    """Publish what killed processes had staged and is whole; delete the rest. Returns how many.

    What there is no room to publish stays for the next time: a full store must still open, or
    nobody could remove anything from it.
    """
    adopted = 0
    for folder in layout.partial.glob(f"{SMALL_PREFIX}*"):
        with suppress(FileNotFoundError):  # somebody else adopts it
            lock_fd = locks.lock_file(folder / _LOCK, wait=False)
            if lock_fd is None:
                continue  # its owner is alive
            try:
                with locks.mutex(layout), files.translated(folder):
                    adopted += _adopt_folder(layout, folder)
                _remove_staging(folder)
            except StoreError:
                continue
            finally:
                os.close(lock_fd)
    return adopted


def _adopt_folder(layout: Layout, folder: Path) -> int:
    whole: list[BlobId] = []
    for path in sorted(folder.iterdir()):
        if path.name == _LOCK or path.name.endswith(RECEIPT_SUFFIX):
            continue
        if _is_whole(layout, path) and not layout.blob(BlobId(path.name)).exists():
            whole.append(BlobId(path.name))
        else:
            _drop(str(folder), path.name)
    if whole:
        fd = files.open_directory(folder)
        try:
            files.sync_filesystem(fd)
        finally:
            os.close(fd)
    for blob in whole:
        target = layout.blob(blob)
        files.ensure_folder(target.parent)
        with suppress(FileNotFoundError):  # the receipt is an attribute
            files.rename(f"{folder}/{blob}{RECEIPT_SUFFIX}", layout.receipt(blob))
        files.rename(folder / blob, target)
    for path in folder.glob(f"*{RECEIPT_SUFFIX}"):
        files.unlink(path)
    return len(whole)


def _is_whole(layout: Layout, path: Path) -> bool:
    if not is_blob_id(path.name):
        return False
    receipt = receipts.read(path, path.with_name(path.name + RECEIPT_SUFFIX))
    if receipt is None:  # its commit was cut between the two renames
        receipt = receipts.read(path, layout.receipt(BlobId(path.name)))
    if receipt is None or path.stat().st_size != receipt.size_bytes:
        return False
    data = path.read_bytes()
    return receipt.chunk_hashes == ((xxhash.xxh3_128_digest(data),) if data else ())


def _drop(folder: str, blob: str) -> None:
    files.unlink(f"{folder}/{blob}")
    files.unlink(f"{folder}/{blob}{RECEIPT_SUFFIX}")


def _remove_staging(folder: Path) -> None:
    files.unlink(folder / _LOCK)
    with suppress(OSError):  # not empty: staged blobs, which adoption will look at
        folder.rmdir()
