"""A server on a real socket that sends just the bytes a test gives it, in the pieces it wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import sleep
from typing import Self

from modelcache.sources.source import HttpTarget
from modelcache.transfer.http1 import HttpConnection

PAUSE_S = 0.002  # between pieces, so that they arrive one by one
Talk = Callable[[socket.socket], None]


def read_request(client: socket.socket) -> bytes:
    """The head of one request; empty when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


def answers(*responses: Iterable[bytes], close: bool = False) -> Talk:
    """One response per request, each in pieces; `close` afterwards, else wait for the client to."""

    def talk(client: socket.socket) -> None:
        for pieces in responses:
            if not read_request(client):
                return
            for number, piece in enumerate(pieces):
                if number:
                    sleep(PAUSE_S)
                client.sendall(piece)
        if not close:
            client.recv(1)

    return talk


class WireServer:
    """Every connection gets the next talk; the last one is repeated."""

    def __init__(self, *talks: Talk, host: str = "127.0.0.1") -> None:
        self.connections = 0
        self._talks = talks
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._clients: list[HttpConnection] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def target(self, path: str = "/x", host: str = "127.0.0.1", **headers: str) -> HttpTarget:
        return HttpTarget(host, self.port, False, path, tuple(headers.items()), 60.0, None, None)

    def connect(self, **timeouts: float) -> HttpConnection:
        """A connection that is closed with the server."""
        chosen = {"connect_timeout_s": 5.0, "stall_timeout_s": 5.0, **timeouts}
        connection = HttpConnection(self.target(), **chosen)
        self._clients.append(connection)
        return connection

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._clients:
            connection.close()
        for client in self._open:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            talk = self._talks[min(self.connections, len(self._talks) - 1)]
            self.connections += 1
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client, talk), daemon=True)
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _serve(client: socket.socket, talk: Talk) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, suppress(OSError):  # the client has what it wanted
            talk(client)
