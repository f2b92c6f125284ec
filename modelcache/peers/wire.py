"""Heads and small bodies of HTTP/1.1 from a socket, each by a deadline and within a bound.

Both ends of the peer plane read with it what is not weights. It knows no statuses and no paths.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Final

from modelcache.errors import CorruptData

HEAD_BYTES_MAX: Final = 32 << 10  # ours have under 1 KiB, an answer with all hashes 9
FIELDS_MAX: Final = 64
_RECEIVE_BYTES: Final = 64 << 10
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_ONCE: Final = frozenset({"content-length", "range", "host", "transfer-encoding"})


class Stream:
    """One connection's bytes as they come. Not thread-safe."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._data = bytearray()

    def read_head(self, *, idle_s: float, head_s: float) -> bytes:
        """The bytes before an empty line; none where none came in time, or before the end.

        idle_s: most time until the first byte; head_s: from there to the last. Raises OSError
        (TimeoutError when it takes too long), CorruptData for a head without an end.
        """
        if not self._data and not self._begins(idle_s):
            return b""
        deadline_s = monotonic() + head_s
        searched = 0
        while (end := self._data.find(b"\r\n\r\n", searched)) < 0:
            if len(self._data) > HEAD_BYTES_MAX:
                raise CorruptData(f"a head of more than {HEAD_BYTES_MAX} bytes")
            searched = max(0, len(self._data) - 3)
            if not self._receive(deadline_s):
                raise ConnectionResetError("closed inside a head")
        if end > HEAD_BYTES_MAX:
            raise CorruptData(f"a head of more than {HEAD_BYTES_MAX} bytes")
        head = bytes(self._data[:end])
        del self._data[: end + 4]
        return head

    def read_body(self, size_bytes: int, *, deadline_s: float) -> bytes:
        """Exactly so many bytes; the caller has bounded them. Raises OSError."""
        while len(self._data) < size_bytes:
            if not self._receive(deadline_s):
                raise ConnectionResetError("closed inside a body")
        body = bytes(self._data[:size_bytes])
        del self._data[:size_bytes]
        return body

    def _begins(self, idle_s: float) -> bool:
        try:
            return self._receive(monotonic() + idle_s) > 0
        except TimeoutError:
            return False

    def _receive(self, deadline_s: float) -> int:
        left_s = deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left_s)
        data = self._socket.recv(_RECEIVE_BYTES)
        self._data += data
        return len(data)


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """First line and fields by lower-case names; repeated ones are joined by a comma.

    Raises CorruptData for anything that could be read in two ways.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    if len(lines) > FIELDS_MAX:
        raise CorruptData(f"a head of more than {FIELDS_MAX} fields")
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise CorruptData("a malformed header field")
        name, value = match[1].lower(), match[2].rstrip(" \t")
        if name in fields and name in _ONCE:
            raise CorruptData(f"{name} is there twice")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return first, fields


def content_length(fields: Mapping[str, str], most_bytes: int) -> int:
    """Size of a body that is announced by its length; 0 without one. Raises CorruptData."""
    if "transfer-encoding" in fields:
        raise CorruptData("bodies in chunks are not understood; announce the length")
    text = fields.get("content-length", "0")
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most_bytes)):
        raise CorruptData(f"a length of {text[:20]!r}")
    if int(text) > most_bytes:
        raise CorruptData(f"a body of {text} bytes; {most_bytes} are allowed")
    return int(text)


def build_head(first: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """A head with its empty line. Names and values are ours: none has a line's end in it."""
    lines = [first, *(f"{name}: {value}" for name, value in fields), "\r\n"]
    head = "\r\n".join(lines)
    assert head.count("\r\n") == len(lines), first  # noqa: S101 - no header splits another
    return head.encode("latin-1")
