"""The peer plane's server: listens, and gives each connection a thread.

A thread for each connection: all a thread does is wait, in system calls that release the
interpreter, for the shelf or for `sendfile`, which moves megabytes in one call. An event loop with
its own `sendfile` costs about the same CPU (`python -m bench serve`), but would need threads for
the shelf all the same.
"""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import suppress
from typing import Final

from modelcache.config import PeerSettings
from modelcache.domain.addresses import parse_address
from modelcache.domain.members import NodeId
from modelcache.errors import InvalidConfig
from modelcache.peers.auth import PeerAuth
from modelcache.peers.connections import Connections, Flights
from modelcache.peers.counters import Counters, ServerCounts
from modelcache.peers.serving import BODIES_MAX, Connection, Tools
from modelcache.peers.shelf import Piece, Shelf
from modelcache.peers.turns import Allowance, Turns

__all__ = ["PeerServer", "Piece", "Shelf"]

BACKLOG: Final = 1024  # 63 nodes of a cell that start at once, each with several connections
SENDS_MAX: Final = 32  # more do not make a link faster, but every one of them slower
SENDS_PER_PEER_MAX: Final = 8  # as many requests as a peer makes of one that has everything
CLOSE_WAIT_S: Final = 5.0  # beyond `peers.wait_s`, for threads to notice
EXHAUSTED_PAUSE_S: Final = 0.05
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n"
)


class PeerServer:
    """Use once: `start`, perhaps `refuse` and `resume`, `close`. Thread-safe."""

    def __init__(self, settings: PeerSettings, shelf: Shelf, auth: PeerAuth, *, me: NodeId) -> None:
        """me: this node's name, which signed requests must be for. Opens nothing before `start`."""
        self._settings = settings
        self._stopping = threading.Event()
        self._counters = Counters()
        self._flights = Flights()
        self._connections = Connections(settings.connections_max, settings.connections_per_peer_max)
        self._tools = Tools(
            settings,
            me,
            shelf,
            auth,
            self._connections,
            self._flights,
            Turns(SENDS_MAX, SENDS_PER_PEER_MAX),
            Allowance(settings.bandwidth_limit_bytes_s, self._stopping),
            self._counters,
            threading.BoundedSemaphore(BODIES_MAX),
        )
        self._port = parse_address(settings.listen)[1] or 0
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises InvalidConfig where that cannot be."""
        host, _ = parse_address(self._settings.listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server(
                (host, self._port),
                family=family,
                backlog=BACKLOG,
                dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            raise InvalidConfig(
                f"cannot listen on {self._settings.listen}: {error.strerror}; set peers.listen"
            ) from error
        self._port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(
            target=self._accept, args=(self._listener,), name="modelcache-peers", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens; before `start`, where it is meant to."""
        return self._port

    def refuse(self) -> None:
        """Refuse requests for weights from now on; messages are still answered. Idempotent."""
        self._flights.refuse()

    def drained(self, wait_s: float) -> bool:
        """Wait for requests under way; whether all have ended in time, and none may begin."""
        return self._flights.drained(wait_s)

    def resume(self) -> None:
        """Give weights again after `refuse`. Idempotent."""
        self._flights.resume()

    def close(self) -> None:
        """Break off what is under way and end all threads. Idempotent.

        A thread that waits for the shelf finds its connection closed, and is waited for no longer
        than `peers.wait_s` in any case.
        """
        self._stopping.set()
        listener, thread = self._listener, self._thread
        if listener is None or thread is None:
            return
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes up `accept`
        thread.join()
        listener.close()
        self._connections.close(self._settings.wait_s + CLOSE_WAIT_S)

    def counters(self) -> ServerCounts:
        """What was served, and what is under way now."""
        return self._counters.snapshot(self._connections.count)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._counters.trouble("exhausted")
                    self._connections.make_room()
                    self._stopping.wait(EXHAUSTED_PAUSE_S)
                continue  # else one that was gone before it was accepted, or the end
            self._welcome(client)

    def _welcome(self, client: socket.socket) -> None:
        connection = Connection(client, self._tools)
        if not self._connections.admit(connection):
            self._counters.trouble("crowded")
            if self._tools.auth.tls is None:
                with suppress(OSError):
                    client.send(_BUSY, socket.MSG_DONTWAIT)
            client.close()
            return
        connection.thread = threading.Thread(
            target=connection.run, name="modelcache-peer", daemon=True
        )
        try:
            connection.thread.start()
        except RuntimeError:  # the system has no threads left
            self._counters.trouble("exhausted")
            connection.thread = None
            connection.close()
