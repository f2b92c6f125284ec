"""How much of a file is in the page cache, asked without reading any of it.

`cachestat` (Linux 6.5) answers for a range in one call. Where it is missing `mincore` over a
mapping that nobody touches answers page by page. Both speak only to whoever may write the file or
owns it; to others nothing is told, for it would tell what strangers read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Final

_PAGE: Final = mmap.PAGESIZE
_CACHESTAT: Final = 451  # the same number on every architecture since all new calls share theirs
_UNTOLD: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL})
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cached(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def resident_bytes(fd: int, start: int, end: int) -> int | None:
    """Bytes of `[start, end)` in the page cache, in whole pages; None where nobody tells.

    Never more than what was asked about. Raises OSError for a descriptor that is none.
    """
    if end <= start:
        return 0
    pages = _by_cachestat(fd, start, end)
    if pages is None:
        pages = _by_mincore(fd, start, end)
    return None if pages is None else min(pages * _PAGE, end - start)


def resident_file_bytes(path: Path) -> int | None:
    """As `resident_bytes`, of a whole file; None also for one that cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return resident_bytes(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _by_cachestat(fd: int, start: int, end: int) -> int | None:
    asked, answer = _Range(start, end - start), _Cached()
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(answer), 0) == 0:
        return int(answer.cached)
    code = ctypes.get_errno()
    if code not in _UNTOLD:
        raise OSError(code, os.strerror(code))
    return None


def _by_mincore(fd: int, start: int, end: int) -> int | None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() and not os.access(f"/proc/self/fd/{fd}", os.W_OK):
        return None  # the kernel would call every page resident
    start -= start % _PAGE
    length = end - start
    flags = (ctypes.c_int(mmap.PROT_READ), ctypes.c_int(mmap.MAP_SHARED))
    at = _libc.mmap(None, ctypes.c_size_t(length), *flags, fd, ctypes.c_int64(start))
    if at == ctypes.c_void_p(-1).value:
        return None
    try:
        pages = ctypes.create_string_buffer(-(-length // _PAGE))
        if _libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(length), pages) != 0:
            return None
        return pages.raw.count(1)
    finally:
        _libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(length))
