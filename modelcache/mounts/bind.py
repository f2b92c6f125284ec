"""Bind mounts that are read-only from their first moment on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from modelcache.errors import MountFailed
from modelcache.mounts import syscalls
from modelcache.mounts.table import mounts_at

_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def bind_read_only(source: Path, target: Path) -> None:
    """Show the folder `source` at the folder `target`: read-only, no set-user-id, no devices.

    The clone gets its attributes before anybody can see it: there is no moment in which a pod
    could write (a bind mount of mount(2) is made read-only by a second call). Killed before the
    last line, it leaves nothing. Raises MountFailed.
    """
    try:
        fd = syscalls.open_tree(str(source), syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
        try:
            syscalls.set_attributes(fd, _ATTRIBUTES)
            syscalls.move_mount(fd, str(target))
        finally:
            os.close(fd)
    except OSError as error:
        raise MountFailed(f"cannot mount at {target}: {_why(error)}") from error


def unmount(target: Path) -> bool:
    """Detach all that is mounted at `target`; False if nothing was. Raises MountFailed.

    Whoever has a file of it open keeps that file; nobody opens another.
    """
    found = False
    for _ in mounts_at(target):
        try:
            syscalls.umount(str(target), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # somebody else was quicker
                break
            raise MountFailed(f"cannot unmount {target}: {_why(error)}") from error
        found = True
    return found


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return "the agent may not mount; it needs CAP_SYS_ADMIN (a privileged container)"
        case errno.ENOSYS:
            return "this kernel cannot; Linux 5.12 or newer is needed"
        case _:
            return error.strerror or type(error).__name__
