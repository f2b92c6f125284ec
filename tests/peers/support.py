"""A peer plane on loopback over a folder of blobs, and a client that sends just what it is told."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import xxhash

from modelcache.config import PeerSettings
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import Member, NodeId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.errors import NotHeld, NotYet
from modelcache.peers.auth import PeerAuth
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.server import PeerServer, Piece
from modelcache.peers.shelf import Gone, never

CHUNK_BYTES = 1 << 20
ME = NodeId("node-a")
OTHER = NodeId("node-b")
TOKEN = "a token of more than sixteen characters"  # noqa: S105 - of no cluster
WAIT_S = 20.0  # for what must happen


def blob_id(number: int = 0) -> BlobId:
    return BlobId(f"sha256-{number:064x}")


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that another thread brings about."""
    deadline_s = monotonic() + WAIT_S
    while not holds():
        assert monotonic() < deadline_s, "it did not come about"
        sleep(0.002)


class FolderShelf:
    """Blobs of a folder; those in `coming` are waited for, as if they were on their way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coming: set[BlobId] = set()
        self.waiting = 0
        self.asked: list[tuple[NodeId, int, float]] = []
        self.heard: list[Announcement] = []
        self.resolved: list[ResolveRequest] = []
        self.answer: Callable[[ResolveRequest], bytes] = lambda asked: asked.ref.encode()
        self.said = Announcement(ME, Member("127.0.0.1", 9871))
        self._changed = threading.Condition()

    def add(self, blob: BlobId, data: bytes) -> None:
        """A blob is here from now on."""
        (self.folder / blob).write_bytes(data)
        with self._changed:
            self.coming.discard(blob)
            self._changed.notify_all()

    def open(
        self,
        blob: BlobId,
        span: ByteRange,
        *,
        wait_s: float,
        priority: int,
        node: NodeId,
        gone: Gone = never,
    ) -> Piece:
        self.asked.append((node, priority, wait_s))
        with self._changed:
            self.waiting += 1
            until_s = monotonic() + wait_s
            while not (came := blob not in self.coming) and monotonic() < until_s and not gone():
                self._changed.wait(0.01)
            self.waiting -= 1
        if not came:
            raise NotYet("not here yet", retry_after_s=0.3)
        try:
            fd = os.open(self.folder / blob, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotHeld("this node has no such blob") from error
        total = os.fstat(fd).st_size
        grid = ChunkGrid(total, CHUNK_BYTES)
        cut = ByteRange(min(span.start, total), min(span.end, total))
        return Piece(fd, cut.start, cut.size_bytes, total, hashes(fd, grid, cut))

    def announce(self, said: Announcement) -> Announcement:
        self.heard.append(said)
        return self.said

    def resolve(self, asked: ResolveRequest) -> bytes:
        self.resolved.append(asked)
        return self.answer(asked)


def hashes(fd: int, grid: ChunkGrid, span: ByteRange) -> tuple[bytes, ...]:
    first, end = span.start // CHUNK_BYTES, -(-span.end // CHUNK_BYTES)
    if grid.span(first, end - first) != span:
        return ()
    parts = [grid.span(chunk) for chunk in range(first, end)]
    return tuple(
        xxhash.xxh3_128_digest(os.pread(fd, part.size_bytes, part.start)) for part in parts
    )


@contextmanager
def serving(
    shelf: FolderShelf, *, me: NodeId = ME, port: int = 0, **settings: object
) -> Iterator[PeerServer]:
    """A server on a free port of loopback."""
    chosen = replace(PeerSettings(listen=f"127.0.0.1:{port}"), **settings)
    server = PeerServer(chosen, shelf, PeerAuth.of(chosen), me=me)
    server.start()
    try:
        yield server
    finally:
        server.close()


def ask(
    server: PeerServer,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    node: str = OTHER,
    **fields: str,
) -> tuple[int, Mapping[str, str], bytes]:
    """One request by the standard library's client, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        connection.request(method, path, body, {"X-Modelcache-Node": node, **named})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    finally:
        connection.close()


def get(server: PeerServer, blob: BlobId, byte_range: str, **fields: str):
    return ask(server, f"/v1/blobs/{blob}", Range=byte_range, **fields)


def say(server: PeerServer, data: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes or says nothing for a moment."""
    answer = bytearray()
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as client:
        with suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
    return bytes(answer)


@contextmanager
def receiver(
    server: PeerServer, blob: BlobId, node: str = OTHER, **fields: str
) -> Iterator[socket.socket]:
    """A peer that asks for a whole blob and reads as fast as the test does."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.settimeout(WAIT_S)
        client.connect(("127.0.0.1", server.port))
        named = {"X-Modelcache-Node": node, **fields}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
        client.sendall(f"GET /v1/blobs/{blob} HTTP/1.1\r\n{lines}\r\n".encode())
        yield client


def read_answer(client: socket.socket) -> tuple[int, int]:
    """Status, and the body's size as far as it came."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return 0, 0
        data += piece
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    fields = dict(
        line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if ": " in line
    )
    size, came = int(fields["content-length"]), len(rest)
    with suppress(ConnectionError):
        while came < size and (piece := client.recv(1 << 20)):
            came += len(piece)
    return int(head.split()[1]), came
