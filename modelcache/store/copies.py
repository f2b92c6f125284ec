"""Copies of models in memory: trees on a tmpfs, apart from the store and what is evicted there.

    <folder>/<12 hex of the store>/<model id>/   a copy: the model's files, read-only
    <folder>/<12 hex of the store>/.new-*        one that is being made
    <folder>/<12 hex of the store>/lock          held while copies are made or dropped

A copy is shown by one rename, when all of it is there. Its folder's modification time is when it
was last used. Nothing survives the machine, and nothing has to.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import ModelId
from modelcache.errors import InvalidConfig, MemoryFull
from modelcache.store import files, locks

TMPFS: Final = 0x01021994  # linux/magic.h
_NEW: Final = ".new-"
_ID_DIGITS: Final = 64
_STATFS_BYTES: Final = 256  # struct statfs has 120 on 64-bit Linux; the type comes first

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy that is whole."""

    model_id: ModelId
    path: Path
    size_bytes: int
    used_s: float


class Copies:
    """See the module. Thread-safe, and safe among processes."""

    def __init__(self, folder: Path, store_root: Path, quota_bytes: int) -> None:
        """Nothing is made or looked at before the first call. quota_bytes: 0 for none."""
        self._folder = folder
        self._root = folder / sha256(str(store_root).encode()).hexdigest()[:12]
        self._quota_bytes = quota_bytes

    def path(self, model_id: ModelId) -> Path | None:
        """The tree of a model that is in memory."""
        path = self._root / model_id
        return path if path.is_dir() else None

    def touch(self, model_id: ModelId) -> None:
        """A copy is used now; another user's cannot be marked."""
        with suppress(OSError):
            os.utime(self._root / model_id)

    def all(self) -> list[Copy]:
        """Every copy, the one used longest ago first."""
        found = []
        with suppress(FileNotFoundError):
            for path in self._root.iterdir():
                if len(path.name) == _ID_DIGITS:
                    with suppress(FileNotFoundError):
                        found.append(_described(path))
        return sorted(found, key=lambda copy: copy.used_s)

    def make(
        self,
        model_id: ModelId,
        sizes: Sequence[tuple[str, int]],
        present: Callable[[ModelId], bool],
        fill: Callable[[Path], None],
    ) -> Path:
        """Show a copy whose files `fill` writes into the folder it is given. Idempotent.

        sizes: of the files. present: whether the store has a model; copies of others go first,
        then those used longest ago. Raises MemoryFull, InvalidConfig when the folder is on a disk.
        """
        with self._changing():
            path = self.path(model_id)
            if path is not None:
                return path
            self._make_room(sum(size for _, size in sizes), present)
            new = self._root / f"{_NEW}{secrets.token_hex(4)}"
            new.mkdir(mode=0o755)
            try:
                fill(new)
                files.rename(new, self._root / model_id)
            except BaseException:
                files.remove_tree(new)
                raise
            return self._root / model_id

    def drop(self, model_id: ModelId) -> int:
        """Remove a copy; returns its bytes. Open files go on being readable. Idempotent."""
        path = self.path(model_id)
        if path is None:
            return 0
        with self._changing():
            return self._drop(path)

    def _drop(self, path: Path) -> int:
        try:
            size = _described(path).size_bytes
        except FileNotFoundError:
            return 0
        away = self._root / f"{_NEW}{secrets.token_hex(4)}"
        files.rename(path, away)
        files.remove_tree(away)
        return size

    def _make_room(self, need_bytes: int, present: Callable[[ModelId], bool]) -> None:
        copies = sorted(self.all(), key=lambda copy: (present(copy.model_id), copy.used_s))
        while True:
            space = os.statvfs(self._root)
            free = space.f_bavail * space.f_frsize
            taken = sum(copy.size_bytes for copy in copies)
            limit = self._quota_bytes - taken if self._quota_bytes else free
            if need_bytes <= min(free, limit):
                return
            if not copies:
                raise MemoryFull(
                    f"{need_bytes} bytes do not fit into {self._folder}: {min(free, limit)} are to "
                    "be had; raise memory.quota_bytes or the size of the tmpfs"
                )
            self._drop(copies.pop(0).path)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone among all who change copies; leftovers of those who died are removed."""
        self._check_folder()
        with files.translated(self._root):
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            lock = locks.lock_file(self._root / "lock", wait=True)
            try:
                for path in self._root.iterdir():
                    if path.name.startswith(_NEW):
                        files.remove_tree(path)
                yield
            finally:
                if lock is not None:
                    os.close(lock)

    def _check_folder(self) -> None:
        with files.translated(self._folder):
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if filesystem_type(self._folder) != TMPFS:
            raise InvalidConfig(
                f"memory.folder {self._folder} is not in memory; mount one: mount -t tmpfs -o "
                f"size=SIZE,huge=within_size,noswap models {self._folder}"
            )


def filesystem_type(path: Path) -> int:
    """The magic number of the filesystem that `path` is on. Raises OSError."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), answer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF


def _described(path: Path) -> Copy:
    size = sum(
        (Path(folder) / name).stat().st_size for folder, _, names in os.walk(path) for name in names
    )
    return Copy(ModelId(path.name), path, size, path.stat().st_mtime)
