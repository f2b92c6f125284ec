"""A bandwidth limit shared by all workers: a token bucket of a quarter second."""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import Final

_BURST_S: Final = 0.25  # smooth enough for a switch, long enough not to wake up all the time
STEP_BYTES: Final = 256 << 10  # read in steps this small when a limit is set


class Pacer:
    """At most `bytes_s` bytes a second on average; 0 means no limit."""

    def __init__(self, bytes_s: int) -> None:
        self.limited = bytes_s > 0
        self._bytes_s = bytes_s
        self._lock = threading.Lock()
        self._free_at_s = monotonic()

    def limit(self, bytes_s: int) -> None:
        """Change the limit, also while others spend: what was spent too early stays spent."""
        with self._lock:
            if bytes_s == self._bytes_s:
                return
            now_s = monotonic()
            owed_bytes = max(0.0, self._free_at_s - now_s) * self._bytes_s
            self._free_at_s = now_s + (owed_bytes / bytes_s if bytes_s else 0.0)
            self._bytes_s = bytes_s
            self.limited = bytes_s > 0

    @property
    def bytes_s(self) -> int:
        """The limit now."""
        return self._bytes_s

    def spend(self, size_bytes: int) -> None:
        """Account for bytes just read; sleeps until the average is kept."""
        if not self.limited:
            return
        with self._lock:
            now_s = monotonic()
            if not self._bytes_s:
                return  # lifted since
            self._free_at_s = max(self._free_at_s, now_s - _BURST_S) + size_bytes / self._bytes_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            sleep(wait_s)
