"""Connections that wait for their next request; whichever worker needs one takes it.

Shared, so that a transfer never has more of them open than it had requests under way at once.
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Final

from modelcache.transfer.http1 import Endpoint, HttpConnection

IDLE_S: Final = 20.0  # servers close idle connections after 20 s (S3) to 75 s (nginx)


class IdleConnections:
    """Thread-safe. Takes what was used last first: the others may have been closed meanwhile."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: dict[Endpoint, list[HttpConnection]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def take(self, endpoint: Endpoint) -> HttpConnection | None:
        """A connection that was used a moment ago, or None."""
        while True:
            with self._lock:
                waiting = self._idle.get(endpoint)
                if not waiting:
                    return None
                connection = waiting.pop()
                self._count -= 1
            if perf_counter() - connection.used_at_s <= IDLE_S:
                return connection
            connection.close()

    def put(self, connection: HttpConnection) -> None:
        """Keep a connection whose last answer was read to its end, if there is room."""
        with self._lock:
            if self._count < self._most:
                self._idle.setdefault(connection.endpoint, []).append(connection)
                self._count += 1
                return
        connection.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            waiting = [each for connections in self._idle.values() for each in connections]
            self._idle.clear()
            self._count = 0
        for connection in waiting:
            connection.close()
