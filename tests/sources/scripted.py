"""An HTTP server on loopback that answers as a test tells it to, and remembers what it was asked.

For what nginx cannot be made to do: missing validators, refused HEADs, false lengths, expiring
redirects. It can also stand in for a forward proxy.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """One request; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Reply:
    """One response. `length`: None announces nothing and closes, as HTTP/1.0 did."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = -1  # -1: the body's


Answering = Callable[[Asked], Reply]


@dataclass
class StaticFile:
    """A file served as a good server would, but for what a test takes away."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    announces_ranges: bool = True

    def __call__(self, asked: Asked) -> Reply:
        headers = dict(self.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        etag = self.headers.get("ETag")
        if asked.headers.get("if-match", etag) != etag:
            return Reply(412)
        if self.announces_ranges:
            headers["Accept-Ranges"] = "bytes" if self.ranges else "none"
        if wanted is None or not self.ranges or asked.method == "HEAD":
            return Reply(200, headers, self.content)
        first, last = int(wanted[1]), min(int(wanted[2]), len(self.content) - 1)
        if first >= len(self.content):
            headers["Content-Range"] = f"bytes */{len(self.content)}"
            return Reply(416, headers)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(self.content)}"
        return Reply(206, headers, self.content[first : last + 1])


def redirect(location: str, status: int = 302) -> Answering:
    """Always lead elsewhere."""
    return lambda _: Reply(status, {"Location": location})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, or a test that breaks the connection, is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ScriptedServer:
    """Use as a context manager. `answers` maps a path without query to who answers for it.

    `*` stands for all other paths.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.answers: dict[str, Answering] = {}
        self.asked: list[Asked] = []
        self.tunnels: list[Asked] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.split("?")[0] == path]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            asked = Asked(self.command, self.path, headers, body)
            server.asked.append(asked)
            path = urlsplit(self.path).path
            answer = server.answers.get(path, server.answers.get("*", lambda _: Reply(404)))
            self._send(answer(asked))

        do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - the library's naming

        def do_CONNECT(self) -> None:
            """Be a proxy: join the two connections until one ends."""
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.tunnels.append(Asked("CONNECT", self.path, headers))
            refused = server.answers.get("CONNECT")
            if refused is not None:
                self._send(refused(server.tunnels[-1]))
                return
            host, _, port = self.path.rpartition(":")
            self.close_connection = True
            with socket.create_connection((host, int(port)), timeout=10) as upstream:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pour, args=(upstream, self.connection))
                back.start()
                _pour(self.connection, upstream)
                back.join()

        def _send(self, reply: Reply) -> None:
            lines = [f"HTTP/1.1 {reply.status} Whatever"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            if reply.length is None:
                self.close_connection = True
                lines.append("Connection: close")
            else:
                length = len(reply.body) if reply.length == -1 else reply.length
                lines.append(f"Content-Length: {length}")
                self.close_connection = length != len(reply.body)
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _pour(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one side is gone, which ends both
