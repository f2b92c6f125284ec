"""How many connections to one origin each of this process's transfers may have.

A transfer knows only its own connections, and several models may come from one host. They divide
what is allowed evenly; one that is paused keeps a single connection, for what readers and peers
wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Sharer(Protocol):
    """A transfer, as this module sees it."""

    @property
    def paused(self) -> bool:
        """Whether something more urgent has its turn."""
        ...

    def share_host(self, connections: int) -> None:
        """Have no more than that to origins."""
        ...


class Hosts:
    """Thread-safe. Its lock is taken before any transfer's, never inside one."""

    def __init__(self, most: int) -> None:
        """most: connections to one origin; 0 means no limit."""
        self._most = most
        self._lock = threading.Lock()
        self._sharers: dict[str, list[Sharer]] = {}

    @contextmanager
    def joined(self, origin: str, sharer: Sharer) -> Iterator[None]:
        """A transfer from an origin, while it lasts."""
        if not self._most:
            yield
            return
        with self._lock:
            self._sharers.setdefault(origin, []).append(sharer)
            self._divide(origin)
        try:
            yield
        finally:
            with self._lock:
                self._sharers[origin].remove(sharer)
                if not self._sharers[origin]:
                    del self._sharers[origin]
                self._divide(origin)

    def changed(self, sharer: Sharer) -> None:
        """A transfer was paused, or goes on."""
        with self._lock:
            for origin, sharers in self._sharers.items():
                if sharer in sharers:
                    self._divide(origin)

    def _divide(self, origin: str) -> None:
        """The caller holds the lock, so that the last division is the one that counts."""
        sharers = self._sharers.get(origin, [])
        rest = [sharer for sharer in sharers if sharer.paused]
        going = [sharer for sharer in sharers if not sharer.paused]
        for sharer in rest:
            sharer.share_host(1)
        left = self._most - len(rest)
        for number, sharer in enumerate(going):
            part = left // len(going) + (number < left % len(going))
            sharer.share_host(max(1, part))
