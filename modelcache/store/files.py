"""Every system call of the store that changes something, in one place.

Tests replace these functions to crash or to run out of space at each of them; errors of the disk
become `StoreError`s in `translated`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelcache.errors import StoreError, StoreFull, StoreReadOnly

ALIGNMENT: Final = 4096  # of O_DIRECT offsets, sizes and buffers; fits every common disk
_FICLONE: Final = 0x40049409  # linux/fs.h
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn an OSError about `path` into the StoreError a caller can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"no space left for {path}; free some, lower the quota's use with `modelcache gc`, "
                "or remove a model. Finished chunks are kept"
            ) from error
        if error.errno in _READ_ONLY:
            raise StoreReadOnly(f"store cannot be written: {path}: {error.strerror}") from error
        raise StoreError(f"{path}: {error.strerror}") from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Append all of `data`."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. A short O_DIRECT write ends on a block, so it may go on."""
    while data.nbytes:
        size = os.pwrite(fd, data, offset)
        data = data[size:]
        offset += size


def append_record(fd: int, record: bytes) -> None:
    """One write to a file opened with O_APPEND."""
    os.write(fd, record)


def fsync(fd: int) -> None:
    """Durable on return."""
    os.fsync(fd)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(fd: int) -> None:
    """Make everything on the filesystem of `fd` durable: one call for thousands of small files."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserve room, so that the disk is full now or not at all; a sparse file where that fails."""
    if not size_bytes:
        return
    if _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(size_bytes)) == 0:
        return
    code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size_bytes)


def clone(source_fd: int, target_fd: int) -> bool:
    """Share all extents of one file with another (reflink); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def rename(source: Path | str, target: Path | str) -> None:
    """Atomic within the store. Plain strings spare thousands of small files a path object each."""
    os.rename(source, target)  # noqa: PTH104


def link(source: Path | str, target: Path | str) -> None:
    """Give a blob one more name."""
    os.link(source, target)


def unlink(path: Path) -> None:
    """Remove a name; it may be gone already."""
    path.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file's content: after a crash it is the old or the new, never between."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        fsync(fd)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    rename(temporary, path)
    fsync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it; links are removed, not followed."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            unlink(Path(entry.path))
    path.rmdir()


def try_lock(fd: int) -> bool:
    """Take an exclusive lock that dies with the descriptor; False if somebody has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_file(path: Path, *, wait: bool) -> int | None:
    """Create and lock `path`; returns its descriptor, or None when held elsewhere and not `wait`.

    The file may be deleted by a holder on its way out, so the lock counts only if the name still
    leads to the same file.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if wait:
                fcntl.flock(fd, fcntl.LOCK_EX)
            elif not try_lock(fd):
                os.close(fd)
                return None
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass  # deleted between open and lock: take the new one
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
