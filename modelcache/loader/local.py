"""A complete file of this machine, read past the page cache where it is cold.

Through the page cache a cold file costs a copy and the pages; direct reads of several MiB run at
the disk's speed for next to no CPU. What is resident is copied from where it is. The decision is
made for each piece, so a file that is half warm is read in both ways.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from modelcache.errors import BadTensors, Forbidden, NotFound, StoreError
from modelcache.loader.plan import GAP_BYTES_MAX, PAGE_BYTES, Piece
from modelcache.store.residency import resident_bytes

RESIDENT_SHARE: Final = 0.5  # of a piece in the page cache, from which on it is read from there


class LocalFile:
    """See the module. Thread-safe; close it when nobody reads any more."""

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        """direct: read past the page cache what is not in it. Raises NotFound, Forbidden."""
        self.path = path
        self.direct_bytes = 0  # for those who ask which way was taken
        with _translated(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size
        self._direct_fd = _open_direct(path) if direct else None
        if self._direct_fd is not None:  # what is read through the page cache is all that is wanted
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Close. Idempotent."""
        for fd in (self._fd, self._direct_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._direct_fd = -1, None

    def ready(self, piece: Piece) -> bool:
        """Whether reading a piece would not wait for a network; always, of a file that is here."""
        del piece
        return True

    def head(self, start: int, size_bytes: int) -> bytes:
        """A few bytes, such as a header."""
        data = bytearray(size_bytes)
        with _translated(self.path):
            self._fill(memoryview(data), start)
        return bytes(data)

    def read(self, piece: Piece, into: memoryview) -> None:
        """Fill `into`, which begins and ends on a page, with a piece of whole pages.

        What a last page has beyond the end of the file is left as it is. Raises BadTensors when
        the file has become shorter, StoreError.
        """
        view = into[: min(piece.end, self.size_bytes) - piece.start]
        with _translated(self.path):
            if self._direct_fd is not None and not self._resident(piece.start, piece.end):
                done = self._read_direct(self._direct_fd, into, piece.start)
                if done >= len(view):
                    return
                self._fill(view[done:], piece.start + done)
            else:
                self._fill(view, piece.start)

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        """Fill `into` with the runs of a piece, packed; always through the page cache.

        The other ranks of this machine want what lies between. Raises as `read` does.
        """
        gap = piece.stride_bytes - piece.run_bytes
        with _translated(self.path):
            if gap > GAP_BYTES_MAX:
                for number in range(piece.count):
                    at = number * piece.run_bytes
                    offset = piece.start + number * piece.stride_bytes
                    self._fill(into[at : at + piece.run_bytes], offset)
                return
            if not self._resident(piece.start, piece.end):
                os.posix_fadvise(
                    self._fd, piece.start, piece.end - piece.start, os.POSIX_FADV_WILLNEED
                )
            self._scatter(piece, into, memoryview(bytearray(gap)))

    def _scatter(self, piece: Piece, into: memoryview, rest: memoryview) -> None:
        """One call for all runs: what is between them goes to `rest`, over and over."""
        views: list[memoryview] = []
        for number in range(piece.count):
            at = number * piece.run_bytes
            views += (into[at : at + piece.run_bytes], rest)
        del views[-1]
        wanted = piece.end - piece.start
        if os.preadv(self._fd, views, piece.start) == wanted:
            return
        for number in range(piece.count):  # cut short, by a signal or the end of the file
            at = number * piece.run_bytes
            offset = piece.start + number * piece.stride_bytes
            self._fill(into[at : at + piece.run_bytes], offset)

    def _resident(self, start: int, end: int) -> bool:
        end = min(end, self.size_bytes)
        cached = resident_bytes(self._fd, start, end)
        if cached is None:
            cached = PAGE_BYTES if self._cached_at(start) else 0
            return cached > 0
        return cached >= RESIDENT_SHARE * (end - start)

    def _cached_at(self, start: int) -> bool:
        """Whether the first page is resident, where the kernel tells strangers no more."""
        try:
            return os.preadv(self._fd, [bytearray(1)], start, os.RWF_NOWAIT) == 1
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP}:
                return False
            raise

    def _read_direct(self, fd: int, into: memoryview, start: int) -> int:
        """How many bytes came; fewer at the end of the file, or where this way is refused."""
        done = 0
        while done < len(into):
            try:
                size = os.preadv(fd, [into[done:]], start + done)
            except OSError as error:
                if error.errno == errno.EINVAL:  # opened, and then refused
                    return done
                raise
            done += size
            if not size or done % PAGE_BYTES:
                break
        self.direct_bytes += done
        return done

    def _fill(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            size = os.preadv(self._fd, [view[done:]], start + done)
            if not size:
                raise BadTensors(f"{self.path} has become shorter while it was read")
            done += size


def _open_direct(path: Path) -> int | None:
    with suppress(OSError):  # a filesystem without
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    return None


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{path} is not there") from error
    except PermissionError as error:
        raise Forbidden(f"{path} may not be read by this user") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def close_all(files: Sequence[LocalFile]) -> None:
    """Close files that were opened together."""
    for file in files:
        file.close()
