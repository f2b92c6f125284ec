"""What the peer plane has served, by peer, for metrics and for people."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from modelcache.domain.members import NodeId

PEERS_COUNTED_MAX: Final = 256  # four cells: nodes that were replaced are counted on
OTHERS: Final = NodeId("others")  # all beyond


@dataclass(frozen=True, slots=True)
class PeerCounts:
    """Of one peer, since the server was made. refusals: by error code.

    waiting: requests that wait now, for a chunk or for a turn. sending: those being sent now.
    """

    node: NodeId
    served_bytes: int
    requests: int
    waiting: int
    sending: int
    refusals: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """Of the whole server. troubles: connections that came to nothing, by reason."""

    connections: int
    troubles: Mapping[str, int]
    peers: tuple[PeerCounts, ...]


@dataclass(slots=True)
class _Counter:
    served_bytes: int = 0
    requests: int = 0
    waiting: int = 0
    sending: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class Counters:
    """Thread-safe. A few additions under a lock for each request, none for each byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[NodeId, _Counter] = {}
        self._troubles: dict[str, int] = {}

    def request(self, node: NodeId) -> None:
        """A peer that has proven itself asks for something."""
        with self._lock:
            self._of(node).requests += 1

    def refusal(self, node: NodeId, code: str) -> None:
        """A peer was refused something. code: of the error."""
        with self._lock:
            refusals = self._of(node).refusals
            refusals[code] = refusals.get(code, 0) + 1

    def served(self, node: NodeId, size_bytes: int) -> None:
        """So many bytes of weights went to a peer."""
        with self._lock:
            self._of(node).served_bytes += size_bytes

    def trouble(self, reason: str) -> None:
        """A connection ended badly. reason: one of a few fixed names."""
        with self._lock:
            self._troubles[reason] = self._troubles.get(reason, 0) + 1

    @contextmanager
    def waiting(self, node: NodeId) -> Iterator[None]:
        """A request of the peer waits meanwhile."""
        with self._lock:
            counter = self._of(node)
            counter.waiting += 1
        try:
            yield
        finally:
            with self._lock:
                counter.waiting -= 1

    @contextmanager
    def sending(self, node: NodeId) -> Iterator[None]:
        """Something is sent to the peer meanwhile."""
        with self._lock:
            counter = self._of(node)
            counter.sending += 1
        try:
            yield
        finally:
            with self._lock:
                counter.sending -= 1

    def snapshot(self, connections: int) -> ServerCounts:
        """Everything, at one moment."""
        with self._lock:
            return ServerCounts(
                connections,
                dict(self._troubles),
                tuple(
                    PeerCounts(
                        node,
                        counter.served_bytes,
                        counter.requests,
                        counter.waiting,
                        counter.sending,
                        dict(counter.refusals),
                    )
                    for node, counter in sorted(self._peers.items())
                ),
            )

    def _of(self, node: NodeId) -> _Counter:
        if node not in self._peers and len(self._peers) >= PEERS_COUNTED_MAX:
            node = OTHERS
        return self._peers.setdefault(node, _Counter())
