"""The peer plane's connections: how many there may be, of whom, and which must go for others.

When there are as many as there may be, a new one takes the place of one that waits for its next
request: of the peer with the most connections, the one that has waited longest. Its client finds it
closed and opens another, as with any server that closes idle connections. If none is idle, the new
one is turned away. The same holds for one peer's connections among themselves.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from modelcache.domain.members import NodeId
from modelcache.errors import Draining, Throttled
from modelcache.peers.turns import BUSY_RETRY_S


class Closable(Protocol):
    """A connection, as this module sees it."""

    node: NodeId | None  # none before its first request
    idle_since_s: float | None  # none while a request is served
    thread: threading.Thread | None

    def abort(self) -> None:
        """Wake up its thread, which then ends; from another thread. Idempotent."""
        ...


class Connections:
    """Thread-safe."""

    def __init__(self, most: int, per_peer: int) -> None:
        self._most = most
        self._per_peer = per_peer
        self._lock = threading.Lock()
        self._open: dict[Closable, None] = {}
        self._leaving: set[Closable] = set()  # aborted, and not gone yet
        self._counts: Counter[NodeId | None] = Counter()
        self._closed = False

    def admit(self, connection: Closable) -> bool:
        """Count a new connection in, if there is room or can be made."""
        with self._lock:
            if self._closed:
                return False
            if len(self._open) - len(self._leaving) >= self._most:
                victim = self._idlest(self._open)
                if victim is None:
                    return False
                self._evict(victim)
            self._open[connection] = None
            self._counts[None] += 1
            return True

    def name(self, connection: Closable, node: NodeId) -> None:
        """A connection's peer has said who it is. Raises Throttled if it has too many."""
        if connection.node == node:
            return
        with self._lock:
            if connection in self._leaving:
                return  # it will notice
            if self._counts[node] >= self._per_peer:
                victim = self._idlest([each for each in self._open if each.node == node])
                if victim is None:
                    raise Throttled(
                        f"{self._per_peer} connections of this node are busy already",
                        retry_after_s=BUSY_RETRY_S,
                    )
                self._evict(victim)
            self._drop_count(connection)
            connection.node = node
            self._counts[node] += 1

    def remove(self, connection: Closable) -> None:
        """A connection is closed."""
        with self._lock:
            if connection in self._leaving:
                self._leaving.remove(connection)
            elif connection in self._open:
                self._drop_count(connection)
            self._open.pop(connection, None)

    def make_room(self) -> None:
        """Close one that is idle: the process has no descriptors left."""
        with self._lock:
            victim = self._idlest(self._open)
            if victim is not None:
                self._evict(victim)

    def close(self, wait_s: float) -> int:
        """End all, wait for their threads, and admit no more; returns how many did not end."""
        with self._lock:
            self._closed = True
            rest = list(self._open)
        for connection in rest:
            connection.abort()
        deadline_s = monotonic() + wait_s
        threads = [connection.thread for connection in rest if connection.thread is not None]
        for thread in threads:
            thread.join(max(0.0, deadline_s - monotonic()))
        return sum(thread.is_alive() for thread in threads)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._open)

    def _idlest(self, among: dict[Closable, None] | list[Closable]) -> Closable | None:
        idle = [
            (-self._counts[each.node], since_s, each)
            for each in among
            if (since_s := each.idle_since_s) is not None and each not in self._leaving
        ]
        return min(idle, key=lambda found: found[:2])[2] if idle else None

    def _evict(self, victim: Closable) -> None:
        self._leaving.add(victim)
        self._drop_count(victim)
        victim.abort()

    def _drop_count(self, connection: Closable) -> None:
        self._counts[connection.node] -= 1
        if self._counts[connection.node] <= 0:
            del self._counts[connection.node]


class Flights:
    """The requests for weights under way; none begin once it drains. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._draining = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request. Raises Draining."""
        with self._changed:
            if self._draining:
                raise Draining("this node is about to leave; ask another", retry_after_s=None)
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def refuse(self) -> None:
        """Begin none from now on. Idempotent."""
        with self._changed:
            self._draining = True

    def drained(self, wait_s: float) -> bool:
        """Wait for those under way; whether they have ended, and none may begin."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._draining and self._count), wait_s)
            return self._draining and not self._count

    def resume(self) -> None:
        """Begin requests again; who waits in `drained` waits no more. Idempotent."""
        with self._changed:
            self._draining = False
            self._changed.notify_all()
