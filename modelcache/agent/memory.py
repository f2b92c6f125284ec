"""Models in memory: brought there, looked for, and dropped, whatever becomes of them on the disk.

Two ways. The page cache costs nothing that is not free, serves every reader of the store, and goes
when somebody needs the memory. A copy on a tmpfs stays, and is for readers that are told of it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcache.config import MemorySettings
from modelcache.domain.manifests import Manifest, ModelId
from modelcache.domain.paths import parents
from modelcache.errors import Cancelled, InvalidConfig, MemoryFull, NotInStore
from modelcache.store import Store, files
from modelcache.store.blocks import in_huge_pages
from modelcache.store.copies import Copies
from modelcache.store.residency import resident_bytes
from modelcache.transfer.memory import available_bytes

PIECE_BYTES: Final = 4 << 20  # one read, and what each thread has of memory for itself
Told = Callable[[int, int], None]
"""Called with bytes done and bytes in all, in any thread, a few times a second."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What of a model is in memory. resident_bytes: in the page cache; None where nobody tells.

    copy_bytes, copy_path: of its copy on a tmpfs, if it has one.
    """

    resident_bytes: int | None = None
    copy_bytes: int = 0
    copy_path: Path | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a file. target: where it goes; None to leave it in the page cache."""

    source: Path
    target: Path | None
    start: int
    end: int


class MemoryTier:
    """See the module. Thread-safe."""

    def __init__(self, store: Store, settings: MemorySettings) -> None:
        self._store = store
        self._settings = settings
        folder = settings.folder
        self._copies = (
            Copies(Path(folder).expanduser().absolute(), store.layout.root, settings.quota_bytes)
            if folder
            else None
        )

    def use(self, manifest: Manifest) -> MemoryUse:
        """What is in memory of a model."""
        resident = self._resident(manifest)
        path = self._copies.path(manifest.model_id) if self._copies is not None else None
        if path is None:
            return MemoryUse(resident)
        size = sum(file.size_bytes for file in manifest.files)
        return MemoryUse(resident, size, path)

    def copy_path(self, model_id: ModelId) -> Path | None:
        """The tree of a model's copy, if there is one, for somebody who reads it now."""
        if self._copies is None:
            return None
        path = self._copies.path(model_id)
        if path is not None:
            self._copies.touch(model_id)
        return path

    def warm(
        self,
        model_id: ModelId,
        *,
        told: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> MemoryUse:
        """Bring all of a warm model into the page cache. Idempotent.

        Raises NotInStore for a model that is not warm, MemoryFull when it takes more than its share
        of what is available, and Cancelled.
        """
        manifest = self._warm_manifest(model_id)
        size = sum(file.size_bytes for file in manifest.blobs().values())
        here = self._resident(manifest) or 0
        room = int(available_bytes() * self._settings.share)
        if size - here > room:
            raise MemoryFull(
                f"model {model_id[:12]} takes {size - here} bytes more of memory, and {room} are "
                "its share of what is available; see memory.share, or drop another model's"
            )
        pieces = [
            _Piece(self._store.layout.blob(blob), None, start, end)
            for blob, file in manifest.blobs().items()
            for start, end in _ranges(file.size_bytes)
        ]
        self._run(pieces, size, told, cancel)
        return self.use(manifest)

    def lock(
        self,
        model_id: ModelId,
        *,
        told: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> MemoryUse:
        """Copy a warm model to the tmpfs, past the page cache. Idempotent.

        Raises NotInStore, MemoryFull, InvalidConfig without a folder for it, and Cancelled.
        """
        if self._copies is None:
            raise InvalidConfig("set memory.folder to a tmpfs, for models that stay in memory")
        manifest = self._warm_manifest(model_id)
        sizes = [(file.path, file.size_bytes) for file in manifest.files]

        def fill(folder: Path) -> None:
            pieces = []
            for file in manifest.files:
                source = self._store.layout.blob(file.blob)
                pieces += _copying(source, folder, file.path, file.size_bytes)
            self._run(pieces, sum(size for _, size in sizes), told, cancel)
            for name, _ in sizes:
                (folder / name).chmod(0o444)

        self._copies.make(
            model_id, sizes, lambda other: self._store.snapshot_path(other) is not None, fill
        )
        return self.use(manifest)

    def drop(self, model_id: ModelId) -> int:
        """Let go of what is in memory of a model; returns the bytes. The disk keeps it.

        Pages that somebody has mapped stay. Raises NotInStore.
        """
        manifest = self._store.manifest(model_id)
        freed = self.drop_copy(model_id)
        for blob in manifest.blobs():
            freed += _forget(self._store.layout.blob(blob))
        return freed

    def drop_copy(self, model_id: ModelId) -> int:
        """Remove a model's copy, whether the store still has it or not; returns the bytes."""
        return self._copies.drop(model_id) if self._copies is not None else 0

    def _warm_manifest(self, model_id: ModelId) -> Manifest:
        if self._store.snapshot_path(model_id) is None:
            raise NotInStore(f"model {model_id[:12]} is not complete yet; pull it first")
        self._store.touch(model_id)
        return self._store.manifest(model_id)

    def _resident(self, manifest: Manifest) -> int | None:
        total = 0
        for blob in manifest.blobs():
            try:
                fd = os.open(self._store.layout.blob(blob), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # not here, or not ours to see
            try:
                found = resident_bytes(fd, 0, os.fstat(fd).st_size)
            finally:
                os.close(fd)
            if found is None:
                return None
            total += found
        return total

    def _run(
        self,
        pieces: Sequence[_Piece],
        total: int,
        told: Told | None,
        cancel: threading.Event | None,
    ) -> None:
        """Read all pieces, by several threads. Raises StoreError, MemoryFull, Cancelled."""
        _Crew(pieces, total, told, cancel).run(self._settings.threads)


class _Crew:
    """Threads that share one list of pieces. Use once."""

    def __init__(
        self,
        pieces: Sequence[_Piece],
        total: int,
        told: Told | None,
        cancel: threading.Event | None,
    ) -> None:
        self._left = deque(pieces)
        self._total = total
        self._told = told
        self._cancel = cancel or threading.Event()
        self._lock = threading.Lock()
        self._done = 0
        self._error: BaseException | None = None

    def run(self, threads: int) -> None:
        """Return when all is done. Raises the first error, and Cancelled."""
        workers = [
            threading.Thread(target=self._work, name=f"memory-{number}", daemon=True)
            for number in range(min(threads, len(self._left)))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._error is not None:
            raise self._error
        if self._cancel.is_set():
            raise Cancelled("stopped; what came into memory stays there for now")

    def _work(self) -> None:
        # For direct reads; and never larger, however large the model.
        scratch = in_huge_pages(PIECE_BYTES)
        try:
            while self._error is None and not self._cancel.is_set():
                piece = self._left.popleft()
                _move(piece, scratch)
                self._tell(piece.end - piece.start)
        except IndexError:
            return  # none are left
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            self._error = error

    def _tell(self, size_bytes: int) -> None:
        with self._lock:
            self._done += size_bytes
            if self._told is not None:
                self._told(self._done, self._total)


def _ranges(size_bytes: int) -> list[tuple[int, int]]:
    return [
        (start, min(start + PIECE_BYTES, size_bytes)) for start in range(0, size_bytes, PIECE_BYTES)
    ]


def _copying(source: Path, folder: Path, name: str, size_bytes: int) -> list[_Piece]:
    """Make the empty file, and say what goes into it."""
    for parent in parents(name):
        (folder / parent).mkdir(exist_ok=True)
    target = folder / name
    files.write_new(target, b"", 0o644)
    os.truncate(target, size_bytes)
    return [_Piece(source, target, start, end) for start, end in _ranges(size_bytes)]


def _move(piece: _Piece, scratch: memoryview) -> None:
    with files.translated(piece.source):
        fd, direct = _opened(piece)
        try:
            if piece.target is None and resident_bytes(fd, piece.start, piece.end) == (
                piece.end - piece.start
            ):
                return
            size = _read(fd, piece, scratch, direct=direct)
        finally:
            os.close(fd)
    if piece.target is not None:
        try:
            with piece.target.open("r+b", buffering=0) as file:
                files.pwrite_all(file.fileno(), scratch[:size], piece.start)
        except OSError as error:
            raise MemoryFull(f"{piece.target} cannot be written: {error.strerror}") from error


def _opened(piece: _Piece) -> tuple[int, bool]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if piece.target is not None:
        try:
            return os.open(piece.source, flags | os.O_DIRECT), True
        except OSError:
            pass  # a filesystem without
    return os.open(piece.source, flags), False


def _read(fd: int, piece: _Piece, scratch: memoryview, *, direct: bool) -> int:
    """How many bytes; all of the piece, or an OSError. A direct read may go beyond its end."""
    wanted = piece.end - piece.start
    done = 0
    while done < wanted:
        end = PIECE_BYTES if direct else wanted
        size = os.preadv(fd, [scratch[done:end]], piece.start + done)
        if not size:
            raise OSError(errno.EIO, "the file has become shorter")
        done += size
    return wanted


def _forget(path: Path) -> int:
    """Have the kernel drop a file's clean pages that nobody maps; returns the bytes that went."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        size = os.fstat(fd).st_size
        before = resident_bytes(fd, 0, size) or 0
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return before - (resident_bytes(fd, 0, size) or 0)
    finally:
        os.close(fd)
