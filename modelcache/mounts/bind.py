"""Bind mounts that are read-only from their first moment on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelcache.errors import MountFailed
from modelcache.mounts import syscalls
from modelcache.mounts.table import mount_of, mounts_at

MOUNTS_MAX: Final = 64  # at one place, of which two are ours
_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def bind_read_only(source: Path, target: Path) -> None:
    """Show the folder `source` at the folder `target`: read-only, no set-user-id, no devices.

    The clone gets its attributes before anybody can see it: there is no moment in which a pod
    could write (a bind mount of mount(2) is made read-only by a second call). Killed before the
    last line, it leaves nothing. Raises MountFailed.
    """
    try:
        with _clone(source) as fd:
            syscalls.move_mount(fd, str(target))
    except OSError as error:
        raise MountFailed(f"cannot mount at {target}: {_why(error)}") from error


def cover(source: Path, target: Path, name: str) -> bool:
    """Show the folder `source` over the mount of this name (its source in the table) at `target`.

    Whoever has files of that mount open keeps them; who opens others gets those of `source`.
    Idempotent: False, and nothing done, where another mount is what is seen at `target`, as when it
    is covered or unmounted. Nothing can come between: what is looked at is what is covered. Asks
    nobody who serves the mount, which may be who calls this. Raises MountFailed.
    """
    try:
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is no such folder any more
        return False
    try:
        seen = mount_of(place)
        if seen is None or seen.source != name:
            return False
        with _clone(source) as fd:
            syscalls.move_mount_onto(fd, place)
    except OSError as error:
        if mount_of(place) is None:  # unmounted meanwhile
            return False
        raise MountFailed(f"cannot mount over {target}: {_why(error)}") from error
    finally:
        os.close(place)
    return True


def unmount(target: Path) -> bool:
    """Detach all that is mounted at `target`; False if nothing was. Raises MountFailed.

    Whoever has a file of it open keeps that file; nobody opens another. What somebody mounts there
    meanwhile, as a cover, goes as well.
    """
    found = False
    for _ in range(MOUNTS_MAX):
        there = mounts_at(target)
        if not there:
            return found
        try:
            syscalls.umount(str(target), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:
                if mounts_at(target) == there:  # out of sight, beneath another mount
                    return found
                continue  # somebody else was quicker
            raise MountFailed(f"cannot unmount {target}: {_why(error)}") from error
        found = True
    raise MountFailed(f"cannot unmount {target}: others mount there again and again")


@contextmanager
def _clone(source: Path) -> Iterator[int]:
    """A mount of a folder that is attached nowhere yet. Raises OSError."""
    fd = syscalls.open_tree(str(source), syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    try:
        syscalls.set_attributes(fd, _ATTRIBUTES)
        yield fd
    finally:
        os.close(fd)


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return "the agent may not mount; it needs CAP_SYS_ADMIN (a privileged container)"
        case errno.ENOSYS:
            return "this kernel cannot; Linux 5.12 or newer is needed"
        case errno.ENOSPC:
            return "there are as many mounts as fs.mount-max allows"
        case _:
            return error.strerror or type(error).__name__
