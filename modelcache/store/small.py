"""Small blobs: written whole, made durable and visible in groups.

Ten thousand configuration shards would cost ten thousand fsyncs one by one; here they share one
`syncfs` per group. Until its group is committed a blob waits in a staging folder that belongs to
this process; what a killed process leaves there is adopted by the next one that opens the store,
after its bytes were compared with their receipt.
"""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Final

import xxhash

from modelcache.domain.manifests import BlobId
from modelcache.store import files, receipts
from modelcache.store.layout import SMALL_PREFIX, Layout, fan_out
from modelcache.store.receipts import Receipt
from modelcache.store.writer import BLOB_MODE

GROUP_BLOBS_MAX: Final = 4096  # a sync costs 5-20 ms here: under 1 % of the time of such a group
GROUP_BYTES_MAX: Final = 256 << 20  # bounds what a power cut can take
_LOCK: Final = "lock"


class SmallBlobs:
    """See the module. `add` is thread-safe; `close` commits nothing."""

    def __init__(self, layout: Layout, chunk_bytes: int) -> None:
        self._layout = layout
        self._chunk_bytes = chunk_bytes
        self._guard = threading.Lock()
        self._staged: list[BlobId] = []
        self._staged_bytes = 0
        self._folders: set[str] = set()
        self._folder: Path | None = None
        self._folder_fd = -1
        self._lock_fd = -1

    def add(self, blob: BlobId, data: memoryview, *, xxh3: bytes, verified: str | None) -> None:
        """Stage one blob; visible and durable after the next commit. Idempotent."""
        with self._guard:
            if self._folder is None:
                self._open()
        hashes = (xxh3,) if len(data) else ()
        receipt = Receipt(len(data), self._chunk_bytes, hashes, verified)
        with files.translated(self._layout.partial):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                fd = os.open(blob, flags, BLOB_MODE, dir_fd=self._folder_fd)
            except FileExistsError:
                return  # a hedge and its twin both brought it
            try:
                files.write_all(fd, data)
                receipt = receipt.of(os.fstat(fd))
                if not receipts.attach(fd, receipt):
                    self._ensure_folder(blob)
                    receipts.write_file(self._layout.receipt(blob), receipt)
            except BaseException:
                os.unlink(blob, dir_fd=self._folder_fd)
                raise
            finally:
                os.close(fd)
        with self._guard:
            self._staged.append(blob)
            self._staged_bytes += len(data)
            full = len(self._staged) >= GROUP_BLOBS_MAX or self._staged_bytes >= GROUP_BYTES_MAX
        if full:
            self.commit()

    def commit(self) -> None:
        """Make everything staged so far durable, then visible."""
        with self._guard:
            staged, self._staged = self._staged, []
            self._staged_bytes = 0
            folder = self._folder
        if not staged or folder is None:
            return
        with files.translated(folder):
            files.sync_filesystem(self._folder_fd)
            blobs = f"{self._layout.blobs}{os.sep}"
            for blob in staged:
                self._ensure_folder(blob)
                files.rename(f"{folder}{os.sep}{blob}", f"{blobs}{fan_out(blob)}{os.sep}{blob}")

    def close(self) -> None:
        """Let go of the staging folder; what was not committed is left for adoption."""
        with self._guard:
            if self._folder is None:
                return
            if not self._staged:
                _remove_staging(self._folder)
            os.close(self._folder_fd)
            os.close(self._lock_fd)
            self._folder = None

    def _open(self) -> None:
        name = f"{SMALL_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        folder = self._layout.partial / name
        with files.translated(folder):
            folder.mkdir(mode=0o700)
            lock_fd = files.lock_file(folder / _LOCK, wait=True)
            assert lock_fd is not None, "waited for"  # noqa: S101
            self._lock_fd = lock_fd
            self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder = folder

    def _ensure_folder(self, blob: BlobId) -> None:
        name = fan_out(blob)
        if name not in self._folders:
            (self._layout.blobs / name).mkdir(mode=0o700, exist_ok=True)
            self._folders.add(name)


def adopt(layout: Layout) -> int:
    """Publish what killed processes had staged and is whole; delete the rest. Returns how many."""
    adopted = 0
    for folder in layout.partial.glob(f"{SMALL_PREFIX}*"):
        lock_fd = files.lock_file(folder / _LOCK, wait=False)
        if lock_fd is None:
            continue  # its owner is alive
        try:
            adopted += _adopt_folder(layout, folder)
            _remove_staging(folder)
        finally:
            os.close(lock_fd)
    return adopted


def _adopt_folder(layout: Layout, folder: Path) -> int:
    whole: list[Path] = []
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        blob = BlobId(path.name)
        receipt = receipts.read(path, layout.receipt(blob))
        data = path.read_bytes()
        hashes = (xxhash.xxh3_128_digest(data),) if data else ()
        if receipt is not None and receipt.chunk_hashes == hashes:
            whole.append(path)
        else:
            files.unlink(path)
    if whole:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.sync_filesystem(fd)
        finally:
            os.close(fd)
    for path in whole:
        target = layout.blob(BlobId(path.name))
        target.parent.mkdir(mode=0o700, exist_ok=True)
        files.rename(path, target)
    return len(whole)


def _remove_staging(folder: Path) -> None:
    files.unlink(folder / _LOCK)
    try:
        folder.rmdir()
    except OSError:
        return  # not empty: somebody's staged blobs, which adoption will look at
