"""A remote layer as a file that can be sought in, read by as few ranged requests as possible.

Made for finding the members of a tar: short reads of headers far apart, and runs of small members.
What was read stays until it is let go, because the bytes between large members are needed whole.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

PAGE_BYTES: Final = 64 << 10  # a header, its extensions, and perhaps the next members
AHEAD_PAGES_MAX: Final = 32  # 2 MiB: what one request reads where everything is being read
_READ_BYTES_MAX: Final = 4 << 20  # of one call: tars with longer headers are not worth scanning


class TooMuch(Exception):
    """More would have to be read or kept than scanning is worth."""


class RangedReader(io.RawIOBase):
    """Not thread-safe. fetch: gives bytes [start, end) of the layer; its errors pass through."""

    def __init__(
        self, fetch: Callable[[int, int], bytes], size_bytes: int, kept_bytes_max: int
    ) -> None:
        """kept_bytes_max: more read and not let go raises TooMuch."""
        super().__init__()
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._pages: dict[int, bytes] = {}
        self._pages_max = kept_bytes_max // PAGE_BYTES + AHEAD_PAGES_MAX
        self._position = 0
        self._next_page = 0  # right behind what the last request brought
        self._ahead = 1

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is read. Beyond the end there is nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as much as asked for, less at the end. Raises TooMuch."""
        end = self._size_bytes if size is None or size < 0 else self._position + size
        end = max(self._position, min(end, self._size_bytes))
        if end - self._position > _READ_BYTES_MAX:
            raise TooMuch
        data = self.span(self._position, end)
        self._position = end
        return data

    def span(self, start: int, end: int) -> bytes:
        """Bytes [start, end), wherever the position is. Raises TooMuch."""
        if start >= end:
            return b""
        pages = range(start // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1)
        for page in pages:
            if page not in self._pages:
                self._load(page, pages[-1])
        first = pages[0] * PAGE_BYTES
        return b"".join(self._pages[page] for page in pages)[start - first : end - first]

    def let_go(self, end: int) -> None:
        """Forget what lies wholly before `end`."""
        for page in [page for page in self._pages if (page + 1) * PAGE_BYTES <= end]:
            del self._pages[page]

    def _load(self, page: int, needed: int) -> None:
        """Fetch a page and those behind it up to `needed`; more where reading goes straight on."""
        self._ahead = min(2 * self._ahead, AHEAD_PAGES_MAX) if page == self._next_page else 1
        count = min(max(self._ahead, needed - page + 1), AHEAD_PAGES_MAX)
        last = page
        while last + 1 < page + count and last + 1 not in self._pages:
            last += 1
        start = page * PAGE_BYTES
        data = self._fetch(start, min((last + 1) * PAGE_BYTES, self._size_bytes))
        for offset in range(0, len(data), PAGE_BYTES):
            self._pages[page + offset // PAGE_BYTES] = data[offset : offset + PAGE_BYTES]
        self._next_page = last + 1
        if len(self._pages) > self._pages_max:
            raise TooMuch
