"""Where the bytes of a run come from, and what must hold before the first of them is believed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from modelcache.domain.manifests import File
from modelcache.domain.ranges import ByteRange
from modelcache.errors import Forbidden, NotFound, OriginChanged, SourceUnavailable


class Body(Protocol):
    """Bytes of one run, in order."""

    def read_into(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end. Raises SourceUnavailable."""
        ...

    def at_end(self) -> bool:
        """Whether nothing follows, asked when all that was expected is read."""
        ...


class LocalBody:
    """A file of this machine, read from an offset on."""

    def __init__(self, path: Path, start: int) -> None:
        """Raises NotFound, Forbidden."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise Forbidden(f"{path} may not be read by this user") from error
        except OSError as error:
            raise NotFound(f"{path} cannot be opened: {error.strerror}") from error
        self._path = path
        self._offset = start

    def read_into(self, view: memoryview) -> int:
        """See Body."""
        filled = 0
        while filled < len(view):
            try:
                size = os.preadv(self._fd, [view[filled:]], self._offset + filled)
            except OSError as error:
                raise SourceUnavailable(f"{self._path}: {error.strerror}") from error
            if not size:
                break
            filled += size
        self._offset += filled
        return filled

    def at_end(self) -> bool:
        """See Body."""
        return not self.read_into(memoryview(bytearray(1)))

    def __del__(self) -> None:
        """Close; a body lives as long as its run."""
        if hasattr(self, "_fd"):
            os.close(self._fd)


def check_length(
    file: File,
    span: ByteRange | None,
    headers: Mapping[str, str],
    length_bytes: int | None,
    *,
    window: tuple[int, int] | None = None,
) -> None:
    """Check that a response carries `span` of `file` (None: all of it) and nothing else.

    Believes a range only by its Content-Range: the status may be 206, or 200 from servers that
    get it wrong; a 200 without one is the whole file. window: see HttpTarget. Raises
    SourceUnavailable for a wrong answer to a range, OriginChanged when the whole has another size
    than was listed.
    """
    shift, whole_bytes = window or (0, file.size_bytes)
    content_range = headers.get("content-range")
    if span is not None and (content_range is not None or span.size_bytes != whole_bytes):
        expected = f"bytes {shift + span.start}-{shift + span.end - 1}/{whole_bytes}"
        if content_range is None:
            raise SourceUnavailable("the server ignored the range that was asked for")
        if content_range.strip() != expected:
            total = content_range.rpartition("/")[2]
            if total.isdigit() and int(total) != whole_bytes:
                raise OriginChanged(_resized(file, whole_bytes, int(total)))
            raise SourceUnavailable(f"asked for {expected!r}, was offered {content_range[:80]!r}")
    wanted = file.size_bytes if span is None else span.size_bytes
    if length_bytes is not None and length_bytes != wanted:
        if span is None:
            raise OriginChanged(_resized(file, file.size_bytes, length_bytes))
        raise SourceUnavailable(f"asked for {wanted} bytes, was offered {length_bytes}")


def check_end(file: File, body: Body) -> None:
    """Check that a body which has brought the whole file's bytes brings no more.

    For answers that announced no length. Raises OriginChanged, SourceUnavailable.
    """
    if not body.at_end():
        raise OriginChanged(
            f"{file.path} is longer than the {file.size_bytes} bytes that were listed; pull again "
            "to resolve it anew"
        )


def is_content_address(file: File) -> bool:
    """Whether the blob is named by its own SHA-256, which then is the checksum to check."""
    return file.blob.startswith("sha256-")


def _resized(file: File, listed_bytes: int, size_bytes: int) -> str:
    return (
        f"{file.path} has changed at the origin: {listed_bytes} bytes were listed, now it has "
        f"{size_bytes}; pull again to resolve it anew"
    )
