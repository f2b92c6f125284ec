"""A proxy that misbehaves on purpose, before any HTTP server on loopback.

A plan decides for each request which fault it meets; requests and bytes are counted, so that a test
can say what was asked again. Deterministic: the plan is the test's, and a random one has a seed.
"""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import sleep
from typing import Self
from urllib.parse import urlsplit

PIECE_BYTES = 256 << 10
WAIT_S = 60.0  # longest time that a request is held for a test that has failed


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan sees. number counts from 0; span is the Range asked for, half-open."""

    number: int
    method: str
    path: str
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Fault:
    """How one answer goes wrong; only what is set happens.

    status: answer this instead of asking the server, with `headers`. alter: replace these response
    headers. reset_at, truncate_at, stall_at: after so many bytes of body reset the connection,
    close it, or go silent until the client leaves. flip_at: change the byte at this offset of the
    body. bytes_s: no faster than this. ignore_range: ask the server for the whole. cut_at: after so
    many bytes of the request's own body reset the connections to both.
    """

    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    alter: dict[str, str] = field(default_factory=dict)
    reset_at: int | None = None
    truncate_at: int | None = None
    stall_at: int | None = None
    flip_at: int | None = None
    bytes_s: float | None = None
    ignore_range: bool = False
    cut_at: int | None = None


Plan = Callable[[Request], Fault | None]
SLOW_DOWN = Fault(
    status=503, body=b"<Error><Code>SlowDown</Code></Error>", headers={"Retry-After": "0"}
)


def never(request: Request) -> Fault | None:
    """No faults."""
    del request
    return None


def held_from(start: int, suffix: str = "") -> Plan:
    """Fall silent on range reads that start there or later, in paths that end so.

    What must be interrupted half-way is then half-way, however slow or fast the machine is.
    """

    def plan(request: Request) -> Fault | None:
        held = request.span is not None and request.span[0] >= start
        return Fault(stall_at=0) if held and request.path.endswith(suffix) else None

    return plan


class Waiting:
    """A plan: range reads that start there or later wait until `release`, and then go well."""

    def __init__(self, start: int, suffix: str = "") -> None:
        self._start = start
        self._suffix = suffix
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    def __call__(self, request: Request) -> Fault | None:
        held = request.span is not None and request.span[0] >= self._start
        if held and request.path.endswith(self._suffix):
            self._released.wait(WAIT_S)
        return None


def random_faults(seed: int, share: float = 0.2, most: int = 40) -> Plan:
    """Faults of every retryable kind on `share` of GETs, at most `most` in all."""
    source = random.Random(seed)
    lock = threading.Lock()
    left = [most]
    print(f"faults from seed {seed}")

    def plan(request: Request) -> Fault | None:
        with lock:
            if request.method != "GET" or not left[0] or source.random() > share:
                return None
            left[0] -= 1
            at = source.randrange(1 << 20)
            return source.choice(
                [
                    Fault(reset_at=0),
                    Fault(reset_at=at),
                    Fault(truncate_at=at),
                    Fault(status=500),
                    SLOW_DOWN,
                    Fault(status=429, headers={"Retry-After": "0"}),
                    Fault(alter={"content-range": "bytes 0-1/*"}),
                ]
            )

    return plan


class FaultProxy:
    """Listens on loopback, passes requests to `upstream` (its URL), and follows the plan."""

    def __init__(self, upstream: str, plan: Plan = never) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.plan = plan
        self.requests: list[Request] = []
        self.body_bytes = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def gets(self, suffix: str = "") -> list[Request]:
        """GET requests whose path (without query) ends so."""
        with self._lock:
            return [
                request
                for request in self.requests
                if request.method == "GET" and request.path.split("?")[0].endswith(suffix)
            ]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # a close alone does not end an accept
        self._listener.close()
        with self._lock:
            sockets = list(self._open)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            with self._lock:
                self._open.add(client)
            server = socket.create_connection(self._upstream)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._exchange(client, server):
                pass
        except OSError:
            pass  # one of the two has gone; so has the connection
        finally:
            with self._lock:
                self._open.discard(client)
            for each in (client, server):
                if each is not None:
                    each.close()

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """One request and its answer; False when the connection is over."""
        head, rest = _read_head(client)
        if not head:
            return False
        request = self._noted(head)
        fault = self.plan(request) or Fault()
        if fault.ignore_range:
            head = re.sub(rb"\r\nrange:[^\r]*", b"", head, flags=re.IGNORECASE)
        if fault.status is not None:
            lines = [f"HTTP/1.1 {fault.status} Fault", f"Content-Length: {len(fault.body)}"]
            lines += [f"{name}: {value}" for name, value in fault.headers.items()]
            client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + fault.body)
            return True
        if not _relay_request(client, server, head, rest, fault.cut_at):
            return False
        answer, body = _read_head(server)
        if not answer:
            return False
        for name, value in fault.alter.items():
            answer = re.sub(
                rb"(?i)(\r\n" + name.encode() + rb": *)[^\r]*", rb"\g<1>" + value.encode(), answer
            )
        client.sendall(answer + b"\r\n\r\n")
        if request.method != "HEAD" and b"chunked" in answer.lower():
            return _relay_chunked(client, server, body)
        length = 0 if request.method == "HEAD" else _length(answer)
        return self._pass_body(client, server, body, length, fault)

    def _pass_body(  # noqa: C901
        self, client: socket.socket, server: socket.socket, start: bytes, length: int, fault: Fault
    ) -> bool:
        end = min(
            at
            for at in (fault.reset_at, fault.truncate_at, fault.stall_at, length)
            if at is not None
        )
        passed = 0
        data = start
        while passed < min(end, length):
            if not data:
                data = server.recv(min(PIECE_BYTES, length - passed))
                if not data:
                    return False
            piece = bytearray(data[: end - passed])
            data = data[len(piece) :] if len(piece) < len(data) else b""
            if fault.flip_at is not None and passed <= fault.flip_at < passed + len(piece):
                piece[fault.flip_at - passed] ^= 0xFF
            client.sendall(piece)
            passed += len(piece)
            with self._lock:
                self.body_bytes += len(piece)
            if fault.bytes_s:
                sleep(len(piece) / fault.bytes_s)
        if fault.reset_at is not None and fault.reset_at <= length:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return False
        if fault.truncate_at is not None and fault.truncate_at < length:
            return False
        if fault.stall_at is not None and fault.stall_at < length:
            client.settimeout(0.1)
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    if not client.recv(1):
                        return False
            return False
        return True

    def _noted(self, head: bytes) -> Request:
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        found = re.search(rb"(?i)\r\nrange: *bytes=(\d+)-(\d+)", head)
        span = (int(found[1]), int(found[2]) + 1) if found else None
        with self._lock:
            request = Request(len(self.requests), method, path, span)
            self.requests.append(request)
        return request


def _read_head(source: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = source.recv(64 << 10)
        if not piece:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _relay_chunked(client: socket.socket, server: socket.socket, data: bytes) -> bool:
    """Pass a chunked body on as it is; small ones only, so the end is looked for in the tail."""
    tail = b""
    while True:
        client.sendall(data)
        tail = (tail + data)[-5:]
        if tail == b"0\r\n\r\n":
            return True
        data = server.recv(PIECE_BYTES)
        if not data:
            return False


def _relay_request(
    client: socket.socket, server: socket.socket, head: bytes, rest: bytes, cut_at: int | None
) -> bool:
    """Pass a request on, or some of it: then both connections are reset when they are closed."""
    if cut_at is None:
        server.sendall(head + b"\r\n\r\n" + rest)
        _relay_rest(client, server, _length(head) - len(rest))
        return True
    server.sendall(head + b"\r\n\r\n" + rest[:cut_at])
    _relay_rest(client, server, cut_at - len(rest))
    for each in (client, server):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return False


def _relay_rest(source: socket.socket, target: socket.socket, left: int) -> None:
    while left > 0:
        piece = source.recv(min(PIECE_BYTES, left))
        if not piece:
            return
        target.sendall(piece)
        left -= len(piece)
