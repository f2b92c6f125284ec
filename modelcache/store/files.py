"""Every system call of the store that changes something, in one place.

What the standard library lacks (`fallocate`, `syncfs`, `FICLONE`) is called through libc. Errors of
the disk become `StoreError`s in `translated`. Tests kill a process before each of these calls and
in the middle of each write.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from modelcache.errors import StoreError, StoreFull, StoreReadOnly

ALIGNMENT: Final = 4096  # of O_DIRECT offsets, sizes and buffers; fits every common disk
TEMPORARY_SUFFIX: Final = ".tmp"
BUFFERED_BYTES: Final = 256 << 10  # of one write through the page cache: see `pwrite_buffered`
_FICLONE: Final = 0x40049409  # linux/fs.h
_START_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h; only a hint, so errors do not matter
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
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
                f"no space left on the disk for {path}; free some, run `modelcache gc`, or remove "
                "a model. Finished chunks are kept"
            ) from error
        if error.errno in _FORBIDDEN:
            raise StoreReadOnly(f"this user has no access to {path}: {error.strerror}") from error
        if error.errno == errno.EROFS:
            raise StoreReadOnly(f"store cannot be written: {path}: {error.strerror}") from error
        raise StoreError(f"{path}: {error.strerror}") from error


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Append all of `data`."""
    size = os.write(fd, data)
    if size < len(data):  # rare: a disk about to be full, or over 2 GiB
        view = memoryview(data)[size:]
        while view.nbytes:
            view = view[os.write(fd, view) :]


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. A short O_DIRECT write ends on a block, so it may go on."""
    while data.nbytes:
        size = os.pwrite(fd, data, offset)
        data = data[size:]
        offset += size


def pwrite_buffered(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` through the page cache, and start its way to the disk.

    A write of 2 MiB makes the kernel look for 2 MiB of memory in one piece, which here took ten
    times as long as the copying; 256 KiB did not. What is on its way early is not waited for by
    the sync at the end.
    """
    for start in range(0, data.nbytes, BUFFERED_BYTES):
        pwrite_all(fd, data[start : start + BUFFERED_BYTES], offset + start)
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(data.nbytes), _START_WRITE)


def append_record(fd: int, record: bytes) -> None:
    """Append all of `record` or nothing, to a file opened with O_APPEND. One writer at a time."""
    size = os.write(fd, record)
    if size < len(record):  # what comes next must not stand behind half a record
        os.ftruncate(fd, os.fstat(fd).st_size - size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fsync(fd: int) -> None:
    """Durable on return."""
    os.fsync(fd)


def fsync_file(path: str) -> None:
    """Make a file durable that nobody has open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: Path | str) -> None:
    """Make the names in a directory durable."""
    fd = open_directory(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_directory(path: Path | str) -> int:
    """A descriptor to sync, lock, or reach files by."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_filesystem(fd: int) -> None:
    """Make everything on the filesystem of `fd` durable: one call for thousands of small files."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserve room, so that the disk is full now or not at all; a sparse file where that fails."""
    if not size_bytes:
        return
    while _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            os.ftruncate(fd, size_bytes)
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def clone(source_fd: int, target_fd: int) -> bool:
    """Share all extents of one file with another (reflink); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def clear_direct(fd: int) -> None:
    """Write through the page cache from now on."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def make_folder(path: Path | str, mode: int) -> None:
    """Create a directory with exactly `mode`, whatever the umask. Raises FileExistsError."""
    os.mkdir(path, mode)  # noqa: PTH102
    if mode & 0o077:
        os.chmod(path, mode)  # noqa: PTH101


def ensure_folder(path: Path, mode: int = 0o700) -> bool:
    """Create a directory unless it exists, its name durable. True if it was made."""
    if path.is_dir():
        return False
    with suppress(FileExistsError):
        make_folder(path, mode)
    fsync_directory(path.parent)
    return True


def rename(source: Path | str, target: Path | str) -> None:
    """Atomic within the store."""
    os.rename(source, target)  # noqa: PTH104 - `small` renames thousands: no Path for each


def link(source: Path | str, target: Path | str) -> None:
    """Give a blob one more name."""
    os.link(source, target)


def symlink(target: str, path: Path | str) -> None:
    """Let a new name lead to `target`, which need not be there."""
    os.symlink(target, path)  # noqa: PTH211 - see rename


def write_new(path: Path | str, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, in a folder that nobody is shown yet; not durable."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask
        write_all(fd, data)
    finally:
        os.close(fd)


def unlink(path: Path | str) -> None:
    """Remove a name; it may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - see rename


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file's content: after a crash it is the old or the new, never between.

    Durable on return. What a crash leaves under a temporary name, garbage collection removes.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, data)
            fsync(fd)
        finally:
            os.close(fd)
        rename(temporary, path)
    except OSError:
        unlink(temporary)
        raise
    fsync_directory(path.parent)


def remove_tree(path: Path | str) -> None:
    """Delete a directory and all below it, as far as it is there; links are not followed."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    unlink(entry.path)
        os.rmdir(path)  # noqa: PTH106
    except FileNotFoundError:
        return  # another process empties the same trash
