"""What is pushed as one layer: its bytes, read once, hashed on the way to the socket.

A layer is a file as it is, or a tar that holds it alone; the tar is never written anywhere, its
header and padding are sent around the file. SHA-256 follows the furthest byte that was read, so a
stretch that is sent again is not hashed again. It owns no connection and knows no registry.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelcache.errors import (
    Cancelled,
    Forbidden,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
)

READ_BYTES: Final = 1 << 20  # what the wire asks for, and writes to the socket, at a time
FILE_MODE: Final = 0o644  # whatever the file has: equal bytes must give an equal layer
STOPPED: Final = "stopped; what was sent is not shown under the tag"

OnBytes = Callable[[int], None]
"""Told the number of bytes that were read to be sent, as they are."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A layer to push. name: the file's path in the model. file: None where `head` is all of it.

    head, tail: bytes before and after the file's. digest: where it is known without reading.
    """

    name: str
    media_type: str
    file: Path | None
    file_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    head: bytes = field(default=b"", repr=False)
    tail: bytes = field(default=b"", repr=False)
    digest: str | None = None

    @property
    def size_bytes(self) -> int:
        """Of the layer."""
        return len(self.head) + self.file_bytes + len(self.tail)


def tar_around(name: str, file_bytes: int) -> tuple[bytes, bytes]:
    """What makes a tar of one file: the bytes before it and those after (POSIX.1-2001)."""
    member = tarfile.TarInfo(name)
    member.size = file_bytes
    member.mode = FILE_MODE
    padding = -file_bytes % tarfile.BLOCKSIZE
    return member.tobuf(tarfile.PAX_FORMAT), bytes(padding + 2 * tarfile.BLOCKSIZE)


def digest_of(data: bytes) -> str:
    """As registries spell it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class LayerReader:
    """A layer that is open. For one thread, but `stop` may be set by any."""

    def __init__(
        self, layer: Outgoing, on_bytes: OnBytes | None = None, stop: threading.Event | None = None
    ) -> None:
        """Raises NotFound, Forbidden, SourceRefused, and OriginChanged for another size."""
        self.layer = layer
        self.size_bytes = layer.size_bytes
        self.position = 0  # of the last read, for whoever shows progress
        self.status: os.stat_result | None = None  # of the file as it was opened
        self._on_bytes = on_bytes
        self._stop = stop
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._fd: int | None = None
        if layer.file is not None:
            try:
                self._open(layer.file)
            except OSError as error:
                self.close()
                raise translated(error, layer.file) from error
            except ModelcacheError:
                self.close()
                raise

    def __enter__(self) -> Self:
        """It is open already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @property
    def hashed_bytes(self) -> int:
        """How far reading has come; a stretch must not begin behind it."""
        return self._hashed

    def stretch(self, start: int, end: int) -> Stretch:
        """Bytes [start, end) as a file that can be sent once."""
        if start > self._hashed:
            raise AssertionError("a gap would not be hashed")
        return Stretch(self, start, end)

    def read_at(self, start: int, size_bytes: int) -> bytes:
        """At least one and at most so many bytes from there; start must be before the end.

        Raises OriginChanged where the file has become shorter, Cancelled after `stop`.
        """
        if self._stop is not None and self._stop.is_set():
            raise Cancelled(STOPPED)
        data = self._bytes_at(start, size_bytes)
        end = start + len(data)
        if end > self._hashed:
            self._hash.update(memoryview(data)[self._hashed - start :])
            self._hashed = end
        self.position = end
        if self._on_bytes is not None:
            self._on_bytes(len(data))
        return data

    def digest(self) -> str:
        """Of the whole layer; what has not been read yet is read now, and counts as sent to nobody.

        Raises as `read_at`.
        """
        on_bytes, self._on_bytes = self._on_bytes, None
        try:
            while self._hashed < self.size_bytes:
                self.read_at(self._hashed, READ_BYTES)
        finally:
            self._on_bytes = on_bytes
        return f"sha256:{self._hash.hexdigest()}"

    def check_unchanged(self) -> None:
        """Raises OriginChanged if the file is no longer what was opened."""
        if self._fd is None or self.status is None:
            return
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise self._changed()

    def _open(self, path: Path) -> None:
        # Without O_NONBLOCK the opening of a pipe that took the file's place would wait for ever.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.status = os.fstat(self._fd)
        if not stat.S_ISREG(self.status.st_mode) or self.status.st_size != self.layer.file_bytes:
            raise self._changed()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def _bytes_at(self, start: int, size_bytes: int) -> bytes:
        head, file_bytes = self.layer.head, self.layer.file_bytes
        if start < len(head):
            return head[start : start + size_bytes]
        inside = start - len(head)
        if inside >= file_bytes:
            return self.layer.tail[inside - file_bytes :][:size_bytes]
        if self._fd is None:
            raise AssertionError("read after close")
        try:
            data = os.pread(self._fd, min(size_bytes, file_bytes - inside), inside)
        except OSError as error:
            raise translated(error, self.layer.file) from error
        if not data:
            raise self._changed()
        return data

    def _changed(self) -> ModelcacheError:
        return OriginChanged(
            f"{self.layer.file} was changed while it was pushed; push again when nobody writes it"
        )


class Stretch(io.RawIOBase):
    """Some of a layer, as requests sends files. It says of itself that it cannot be rewound.

    After a failure in the middle nobody but the registry knows what has arrived, so to send it
    again is the upload's decision and not the connection's.
    """

    def __init__(self, reader: LayerReader, start: int, end: int) -> None:
        super().__init__()
        self._reader = reader
        self._start = start
        self._end = end
        self._at = start

    def __len__(self) -> int:
        """What Content-Length will say."""
        return self._end - self._start

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """No: see the class."""
        return False

    def tell(self) -> int:
        """How much of it was read."""
        return self._at - self._start

    def read(self, size: int = -1, /) -> bytes:
        """See io.RawIOBase; never more than READ_BYTES, so that memory stays bounded."""
        most = READ_BYTES if size < 0 else min(size, READ_BYTES)
        wanted = min(most, self._end - self._at)
        if not wanted:
            return b""
        data = self._reader.read_at(self._at, wanted)
        self._at += len(data)
        return data


def translated(error: OSError, path: object) -> ModelcacheError:
    """Our error for a local file that cannot be read."""
    match error:
        case PermissionError():
            return Forbidden(f"{path} may not be read by this user")
        case FileNotFoundError() | NotADirectoryError():
            return NotFound(f"{path} does not exist")
        case _:
            return SourceRefused(f"{path} cannot be read: {error.strerror}")
