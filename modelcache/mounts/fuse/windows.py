"""How a file is being read: one behind the other, or here and there. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelcache.domain.ranges import ByteRange

SLACK_BYTES: Final = 2 << 20  # the kernel's readahead comes in pieces, and not always in order
SEQUENTIAL_BYTES: Final = 2 << 20  # read in a row before anything is fetched ahead of it


@dataclass(slots=True)
class Window:
    """One open file. A reader that goes on where it was gets a window that grows with its run."""

    chunk_bytes: int
    ahead_bytes_max: int
    end: int = 0  # where the last read ended
    run_bytes: int = 0  # that were read in a row
    told: int = 0  # up to where what follows has been asked for

    def read(self, span: ByteRange) -> ByteRange | None:
        """A range was read: what should be fetched ahead now, if anything.

        The range may end beyond the file. It is told in steps of a chunk.
        """
        if not -SLACK_BYTES <= span.start - self.end <= SLACK_BYTES:
            self.run_bytes = self.told = 0
        self.run_bytes += span.size_bytes
        self.end = max(span.end, self.end) if self.run_bytes > span.size_bytes else span.end
        if self.run_bytes < SEQUENTIAL_BYTES or not self.ahead_bytes_max:
            return None
        reach = min(self.ahead_bytes_max, max(self.chunk_bytes, 2 * self.run_bytes))
        start, end = max(self.told, self.end), self.end + reach
        if end - start < min(self.chunk_bytes, self.ahead_bytes_max):
            return None
        self.told = end
        return ByteRange(start, end)
