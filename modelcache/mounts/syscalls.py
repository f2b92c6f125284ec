"""The system calls of mounting, which Python's library does not have.

Numbers are those of the unified table (x86-64 and arm64 alike, Linux 5.2 and later); see
open_tree(2), move_mount(2), mount_setattr(2), mount(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_tree(path: str, flags: int) -> int:
    """A descriptor of a (cloned) mount. Raises OSError."""
    return _checked(
        _libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags)), path
    )


def set_attributes(fd: int, attributes: int) -> None:
    """Set MOUNT_ATTR_ flags of the mount behind a descriptor. Raises OSError."""
    wanted = _MountAttr(attr_set=attributes)
    done = _libc.syscall(
        _SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, ctypes.byref(wanted), ctypes.sizeof(wanted)
    )
    _checked(done, f"descriptor {fd}")


def move_mount(fd: int, target: str) -> None:
    """Attach the mount behind a descriptor. Raises OSError."""
    done = _libc.syscall(
        _SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
    )
    _checked(done, target)


def move_mount_onto(fd: int, place: int) -> None:
    """Attach the mount behind a descriptor where another one leads. Raises OSError.

    So it does where the mount that `place` was opened through is not mounted any more.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", place, b"", flags), f"descriptor {place}")


def mount(source: str, target: str, filesystem: str, flags: int, options: str) -> None:
    """Attach a filesystem at a path. Raises OSError."""
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        filesystem.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _checked(done, target)


def umount(target: str, flags: int) -> None:
    """Detach what is mounted at a path. Raises OSError."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
