"""Bytes of a file to a peer, with as little of this process in between as possible.

They go from the page cache to the socket with `sendfile`, without passing through Python; with TLS
through one buffer that belongs to the turn at sending, whole steps at a time. A receiver that takes
nothing for STALL_S, or less than a step in STEP_S, is dropped.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from struct import pack
from time import monotonic
from typing import Final

from modelcache.domain.members import NodeId
from modelcache.domain.ranges import MIB
from modelcache.errors import Throttled
from modelcache.peers.counters import Counters
from modelcache.peers.turns import Allowance, Turn, Turns

STALL_S: Final = 20.0  # less than the 30 s after which an asker gives up
STEP_S: Final = 30.0  # a slower receiver is better off asking somebody nearer
STEP_BYTES: Final = 2 * MIB  # one call of sendfile
LIMITED_STEP_BYTES: Final = 256 << 10  # the same with a limit on bandwidth
TURN_BYTES: Final = (
    8 * MIB
)  # sent before others get the turn: milliseconds on any link of a cluster
TURN_WAIT_S: Final = 20.0  # for the next turn within an answer: giving up costs what was sent
LINGER_S: Final = 2.0
_RECEIVE_BYTES: Final = 64 << 10


class Outlet:
    """The sending half of one connection. Not thread-safe."""

    def __init__(
        self, client: socket.socket, turns: Turns, allowance: Allowance, counters: Counters
    ) -> None:
        self._socket = client
        self._secured: ssl.SSLSocket | None = None
        self._turns = turns
        self._allowance = allowance
        self._counters = counters

    def prepare(self) -> None:
        """Set the socket's options. Raises OSError."""
        client = self._socket
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that has died without a word must not live on in the kernel for a quarter of an
        # hour after we have given it up; later than that, so that we know why.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * STALL_S))
        # No SO_SNDBUF: it would end the kernel's own tuning, which goes to 4 MiB, and most systems
        # do not let it be set beyond 208 KiB.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pack("ll", int(STALL_S), 0))

    def secure(self, secured: ssl.SSLSocket) -> None:
        """Send encrypted from now on."""
        self._socket = self._secured = secured

    def send(self, data: bytes, *, more: bool = False) -> None:
        """Send all of it. more: something follows at once. Raises OSError."""
        if self._secured is not None:
            self._secured.settimeout(STALL_S)  # OpenSSL would wait for ever otherwise
            self._secured.sendall(data)
        else:
            self._socket.settimeout(None)  # SO_SNDTIMEO holds, and sendfile must block
            self._socket.sendall(data, socket.MSG_MORE if more else 0)

    def send_file(self, fd: int, offset: int, size_bytes: int, *, node: NodeId, turn: Turn) -> None:
        """Send a part of a file after `send`, passing on the turn every TURN_BYTES.

        Raises OSError, also where no turn comes: what was begun can only be broken off.
        """
        while size_bytes:
            size = min(size_bytes, TURN_BYTES)
            if self._secured is not None:
                self._encrypt(self._secured, node, fd, offset, size)
            else:
                self._sendfile(node, fd, offset, size)
            offset += size
            size_bytes -= size
            if size_bytes:
                try:
                    turn.pass_on(TURN_WAIT_S)
                except Throttled as error:
                    raise ConnectionAbortedError("no turn in time") from error

    def linger(self, most_bytes: int) -> None:
        """Say that nothing follows, and read what the peer still sends, within bounds.

        A connection closed over unread bytes is reset, and the last answer lost with it.
        """
        deadline_s = monotonic() + LINGER_S
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while most_bytes > 0 and (wait_s := deadline_s - monotonic()) > 0:
                self._socket.settimeout(wait_s)
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    return
                most_bytes -= len(data)

    def _sendfile(self, node: NodeId, fd: int, offset: int, size: int) -> None:
        out = self._socket.fileno()
        most = LIMITED_STEP_BYTES if self._allowance.limited else STEP_BYTES
        since_s = monotonic()  # the last whole step
        while size:
            started_s = monotonic()
            step = min(size, most)
            try:
                sent = os.sendfile(out, fd, offset, step)
            except OSError as error:
                # It may have taken a little after half the time, and then the kernel gave it up.
                if monotonic() - since_s >= STALL_S:
                    raise TimeoutError("too slow a receiver") from error
                raise
            if not sent:
                raise ConnectionAbortedError("the file is shorter than it was")
            self._sent(node, sent, started_s)
            if sent == step:
                since_s = monotonic()
            offset += sent
            size -= sent

    def _encrypt(self, out: ssl.SSLSocket, node: NodeId, fd: int, offset: int, size: int) -> None:
        most = LIMITED_STEP_BYTES if self._allowance.limited else STEP_BYTES
        with self._turns.buffer() as buffer:
            while size:
                started_s = monotonic()
                read = os.preadv(fd, [buffer[: min(size, most)]], offset)
                if not read:
                    raise ConnectionAbortedError("the file is shorter than it was")
                out.sendall(buffer[:read])
                self._sent(node, read, started_s)
                offset += read
                size -= read

    def _sent(self, node: NodeId, size: int, started_s: float) -> None:
        self._counters.served(node, size)
        if monotonic() - started_s > STEP_S:
            raise TimeoutError("too slow a receiver")
        self._allowance.spend(size)
