"""The descriptor that a mount's requests come from: /dev/fuse, and what can be done with it.

One descriptor is one mount. The mount lives as long as any process holds the descriptor; what was
asked and not answered when a process dies waits for the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelcache.errors import MountFailed
from modelcache.mounts import syscalls
from modelcache.mounts.fuse import protocol
from modelcache.mounts.table import mounts_at

DEVICE: Final = Path("/dev/fuse")
FILESYSTEM: Final = "fuse.modelcache"
READAHEAD_KB: Final = 4096  # four reads under way; of 8 MiB, faults here and there pay too much
_BDI: Final = Path("/sys/class/bdi")
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
_AGAIN: Final = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})


class Channel:
    """See the module. Thread-safe, but for each thread's own buffer."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls) -> Channel:
        """A descriptor that nothing is mounted with yet. Raises MountFailed."""
        try:
            return cls(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise MountFailed(
                f"cannot open {DEVICE}: {error.strerror}; a streaming mount needs FUSE"
            ) from error

    def mount(self, target: Path, name: str = "modelcache") -> None:
        """Attach it: read-only, no set-user-id, no devices, for every user. Raises MountFailed.

        name: what the table of mounts shall have for its source.
        """
        options = (
            f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,"
            f"max_read={protocol.READ_BYTES_MAX}"
        )
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        try:
            syscalls.mount(name, str(target), FILESYSTEM, flags, options)
        except OSError as error:
            why = error.strerror or type(error).__name__
            if error.errno in {errno.EPERM, errno.EACCES}:
                why = "a streaming mount needs CAP_SYS_ADMIN (root, or a privileged container)"
            elif error.errno == errno.ENODEV:
                why = "this kernel has no FUSE (modprobe fuse)"
            raise MountFailed(f"cannot mount at {target}: {why}") from error

    def read(self, buffer: bytearray) -> int | None:
        """The next request into `buffer`; its size in bytes, None when there is no mount any more.

        Raises OSError for what cannot happen.
        """
        while True:
            try:
                return os.readv(self.fd, [buffer])
            except OSError as error:
                if error.errno in _AGAIN:  # the request was taken back
                    continue
                if error.errno in _GONE:
                    return None
                raise

    def answer(self, unique: int, body: bytes | memoryview = b"", *, error: int = 0) -> None:
        """Answer a request; harmless for one that nobody waits for any more."""
        head = protocol.answer_head(unique, len(body), error)
        try:
            os.writev(self.fd, [head, body] if len(body) else [head])
        except OSError as failure:
            if failure.errno not in _GONE and failure.errno != errno.ENOENT:
                raise

    def tell(self, code: int, body: bytes = b"") -> bool:
        """Tell the kernel something; False if it knows nothing of what that is about."""
        try:
            os.write(self.fd, protocol.notice(code, body))
        except OSError as error:
            if error.errno in _GONE | {errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENOSYS}:
                return False
            raise
        return True

    def add_backing(self, fd: int) -> int:
        """An id of a file that the kernel shall read itself. Raises OSError."""
        return int(fcntl.ioctl(self.fd, protocol.BACKING_OPEN, protocol.backing_of(fd), True))

    def close(self) -> None:
        """Let go; with the last holder the mount is dead. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def widen_readahead(target: Path) -> bool:
    """Have the kernel read ahead several requests at once; False where it may not be said.

    With one of a MiB at a time the disk waits while we copy. At INIT the kernel takes no more than
    its default, 128 KiB, which costs 40 % of a cold file's speed.
    """
    mounted = mounts_at(target)
    if not mounted:
        return False
    try:
        path = _BDI / mounted[-1].device / "read_ahead_kb"
        path.write_text(str(READAHEAD_KB))
    except OSError:
        return False  # /sys may be read-only in a container: slower, and no less right
    return True
