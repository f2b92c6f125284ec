"""A small registry that goes wrong as a test tells it to, and keeps what arrived before.

Blobs, manifests and upload sessions of the distribution specification, in memory. Real registries
can be made to lose a connection, but not to be met again in a known state.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. number counts those of its method from 0."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str] = field(repr=False)
    number: int = 0


@dataclass(frozen=True, slots=True)
class Mishap:
    """What goes wrong with a request; only what is set happens.

    cut_at: reset the connection after so many bytes of body, which are kept. status: answer this,
    with `headers` and an error code, and do nothing. mute: do all of it, and hang up without an
    answer. alter: replace these headers of the answer. flip: damage the last byte that arrives.
    lose: forget all upload sessions first.
    """

    cut_at: int | None = None
    status: int | None = None
    code: str = "UNKNOWN"
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    alter: dict[str, str] = field(default_factory=dict)
    mute: bool = False
    flip: bool = False
    lose: bool = False


Plan = Callable[[Asked], Mishap | None]


class PliantRegistry:
    """Use as a context manager. `name` is what refs call it."""

    def __init__(self) -> None:
        self.plan: Plan = lambda _: None
        self.asked: list[Asked] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.sessions: dict[str, bytearray] = {}
        self.received_bytes = 0
        self.body_bytes_max = 1 << 40
        self.chunk_min_bytes = 0
        self.single_posts = False
        self.relative = True
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def name(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def methods(self, method: str, part: str = "") -> list[Asked]:
        """Requests of a method, whose path has this in it."""
        return [asked for asked in self.asked if asked.method == method and part in asked.path]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections are broken on purpose, and standard error is a test's subject.

        What goes wrong here shows as a connection that breaks where no plan wanted it.
        """


def _handler(registry: PliantRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.registry = registry
    return Handler


class _Handler(BaseHTTPRequestHandler):
    registry: PliantRegistry
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.registry.lock:
            number = len(self.registry.methods(self.command))
            asked = Asked(self.command, parts.path, query, headers, number)
            self.registry.asked.append(asked)
        self._mishap = self.registry.plan(asked) or Mishap()
        if self._mishap.lose:
            self.registry.sessions.clear()
        if self._mishap.status is not None:
            self._body()
            self._error(self._mishap.status, self._mishap.code, self._mishap.headers)
            return
        length = int(headers.get("content-length", "0"))
        if length > self.registry.body_bytes_max:
            self._body()  # as front ends do that want their answer to be read
            self._error(413, "SIZE_INVALID")
            return
        match re.split("/(blobs/uploads|blobs|manifests)/", parts.path):
            case [_, "blobs/uploads", session]:
                self._upload(asked, session)
            case [_, "blobs", digest]:
                self._get(self.registry.blobs.get(digest), digest)
            case [_, "manifests", tag]:
                self._manifest(tag)
            case _:
                self._answer(200)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = _serve  # noqa: N815 - the library's naming

    def _upload(self, asked: Asked, session: str) -> None:
        if asked.method == "POST":
            self._begin(asked)
            return
        kept = self.registry.sessions.get(session)
        if kept is None:
            self._body()
            self._error(404, "BLOB_UPLOAD_UNKNOWN")
        elif asked.method == "GET":
            self._answer(204, self._where(session))
        elif not self._is_next(asked, kept):
            self._body()
            self._error(416, "RANGE_INVALID", self._where(session))
        else:
            self._take(kept)
            if asked.method == "PATCH":
                self._answer(202, self._where(session))
            else:
                self._complete(session, asked.query["digest"])

    def _begin(self, asked: Asked) -> None:
        digest = asked.query.get("digest")
        body = self._body()
        if digest and self.registry.single_posts:
            self.registry.blobs[digest] = body
            self._answer(201, {"Docker-Content-Digest": digest})
            return
        session = f"session-{len(self.registry.asked)}"
        self.registry.sessions[session] = bytearray()
        headers = self._where(session)
        if self.registry.chunk_min_bytes:
            headers["OCI-Chunk-Min-Length"] = str(self.registry.chunk_min_bytes)
        self._answer(202, headers)

    def _complete(self, session: str, digest: str) -> None:
        data = bytes(self.registry.sessions.pop(session))
        if f"sha256:{sha256(data).hexdigest()}" != digest:
            self._error(400, "DIGEST_INVALID")
            return
        self.registry.blobs[digest] = data
        self._answer(201, {"Docker-Content-Digest": digest})

    def _is_next(self, asked: Asked, kept: bytearray) -> bool:
        span = re.fullmatch(r"(\d+)-(\d+)", asked.headers.get("content-range", ""))
        return span is None or int(span[1]) == len(kept)

    def _where(self, session: str) -> dict[str, str]:
        path = f"/v2/x/blobs/uploads/{session}?_state=secret"
        kept = len(self.registry.sessions[session])
        location = path if self.registry.relative else f"http://{self.registry.name}{path}"
        return {"Location": location, "Range": f"0-{max(0, kept - 1)}"}

    def _manifest(self, tag: str) -> None:
        if self.command == "PUT":
            data = self._body()
            self.registry.manifests[tag] = data
            self._answer(201, {"Docker-Content-Digest": f"sha256:{sha256(data).hexdigest()}"})
        else:
            data = self.registry.manifests.get(tag)
            self._get(data, f"sha256:{sha256(data or b'').hexdigest()}")

    def _get(self, data: bytes | None, digest: str) -> None:
        if data is None:
            self._error(404, "BLOB_UNKNOWN")
        else:
            self._answer(200, {"Docker-Content-Digest": digest}, data)

    def _take(self, kept: bytearray) -> None:
        """A body into a session, as far as it comes."""
        left = int(self.headers.get("Content-Length", "0"))
        cut_at = self._mishap.cut_at
        while left:
            data = self.rfile.read(min(PIECE_BYTES, left, *([] if cut_at is None else [cut_at])))
            if not data:
                raise ConnectionResetError
            kept += data
            left -= len(data)
            with self.registry.lock:
                self.registry.received_bytes += len(data)
            if cut_at is not None:
                cut_at -= len(data)
                if not cut_at:
                    self._hang_up()
        if self._mishap.flip and int(self.headers.get("Content-Length", "0")):
            kept[-1] ^= 0xFF

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        error = {"code": code, "message": self._mishap.message or "no"}
        body = json.dumps({"errors": [error]}).encode()
        self._answer(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        if self._mishap.mute:
            self._hang_up()
        self.send_response(status)
        for name, value in {**(headers or {}), **self._mishap.alter}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        """Close with a reset: bytes that are still coming must not be waited for."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raise ConnectionResetError
