"""Locks between processes: `flock`, which dies with its holder however that dies.

A lock belongs to an open file description, so two threads of one process keep each other out as
two processes do. A child that was forked without exec shares its parent's locks: the store's
descriptors are all close-on-exec, and nothing here forks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelcache.store import files
from modelcache.store.layout import Layout


@contextmanager
def mutex(layout: Layout) -> Iterator[None]:
    """Keep every other process and thread from changing what exists. For moments only.

    Not reentrant.
    """
    with files.translated(layout.mutex):
        fd = lock_file(layout.mutex, wait=True)
    assert fd is not None, "waited for"  # noqa: S101
    try:
        yield
    finally:
        os.close(fd)


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
    leads to the same file. Raises FileNotFoundError when the folder is gone.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if wait:
                fcntl.flock(fd, fcntl.LOCK_EX)
            elif not try_lock(fd):
                os.close(fd)
                return None
            if _leads_to(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # deleted between open and lock: take the new one


def is_locked(path: Path) -> bool:
    """Whether somebody holds `path` exclusively. Looks without getting in anybody's way.

    A file that is gone is held by nobody; one that cannot be opened counts as held.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _leads_to(path: Path, fd: int) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
