"""Servers of one file, as processes of their own; and a reader that costs next to nothing.

    python -m bench.servers KIND PORT FILE [CERT KEY CA]     serve until killed
    python -m bench.servers read PORT FILE_BYTES CONNECTIONS PATH [CERT KEY CA]     print seconds

KIND is `peers` (modelcache's peer plane, with TLS where certificates are given, with signatures
where MODELCACHE_BENCH_TOKEN names a token's file), `asyncio` (an event loop and its sendfile) or
`starlette` (its FileResponse under uvicorn).
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from time import perf_counter

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from modelcache.config import PeerSettings
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import Member, NodeId
from modelcache.domain.ranges import ByteRange
from modelcache.peers.auth import PeerAuth
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.server import PeerServer, Piece
from modelcache.peers.shelf import Gone, never
from modelcache.peers.signing import Scope

BLOB = BlobId(f"sha256-{0:064x}")
BLOB_PATH = f"/v1/blobs/{BLOB}"
NODE = NodeId("reader")
SERVER_NAME = "modelcache-peer"
REQUEST_BYTES = 16 << 20  # a chunk
BUFFER_BYTES = 2 << 20
TIMEOUT_S = 60.0
TOKEN = "MODELCACHE_BENCH_TOKEN"  # noqa: S105 - the name of a variable


class OneFile:
    """A shelf with one blob on it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size_bytes = Path(path).stat().st_size

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
        """Any blob is the file."""
        del blob, wait_s, priority, node, gone
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return Piece(fd, span.start, span.size_bytes, self._size_bytes, (bytes(16),))

    def announce(self, said: Announcement) -> Announcement:
        """Nothing is known."""
        del said
        return Announcement(NodeId("bench"), Member("127.0.0.1", 1))

    def resolve(self, asked: ResolveRequest) -> bytes:
        """Nothing is known."""
        return asked.ref.encode()


def settings(port: int, files: list[str]) -> PeerSettings:
    """Of both ends."""
    cert, key, authority = files or ("", "", "")
    return PeerSettings(
        listen=f"127.0.0.1:{port}",
        cert_file=cert,
        key_file=key,
        ca_file=authority,
        server_name=SERVER_NAME,
        token_file=os.environ.get(TOKEN, ""),
    )


def serve_peers(port: int, path: str, files: list[str]) -> None:
    """Our own."""
    chosen = settings(port, files)
    PeerServer(chosen, OneFile(path), PeerAuth.of(chosen), me=NODE).start()
    signal.pause()


def serve_asyncio(port: int, path: str) -> None:
    """The least that an event loop needs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with Path(path).open("rb") as file:  # noqa: ASYNC230 - once for each connection
            while head := await read_head(reader):
                match = re.search(rb"bytes=(\d+)-(\d+)", head)
                assert match is not None
                start, end = int(match[1]), int(match[2]) + 1
                writer.write(b"HTTP/1.1 206 Partial Content\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n" % (end - start))
                await writer.drain()
                await loop.sendfile(writer.transport, file, start, end - start)
        writer.close()

    async def read_head(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


def serve_starlette(port: int, path: str) -> None:
    """What FastAPI would do."""

    async def answer(request: Request) -> FileResponse:
        del request
        return FileResponse(path)

    app = Starlette(routes=[Route(BLOB_PATH, answer)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def read(port: int, file_bytes: int, connections: int, path: str, files: list[str]) -> None:
    """Read the file once in chunks, over all connections, and throw it away."""
    starts = iter(range(0, file_bytes, REQUEST_BYTES))
    lock = threading.Lock()
    auth = PeerAuth.of(settings(0, files))
    scope = Scope("GET", path, NODE, NODE)
    signed = "".join(f"{name}: {value}\r\n" for name, value in auth.sign(scope))

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
        connected = connect(port, auth)
        # Without TLS the kernel throws the bytes away itself.
        flags = 0 if auth.tls else socket.MSG_TRUNC | socket.MSG_WAITALL
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                connected.close()
                return
            end = min(start + REQUEST_BYTES, file_bytes)
            connected.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Modelcache-Node: {NODE}\r\n"
                f"{signed}Range: bytes={start}-{end - 1}\r\n\r\n".encode()
            )
            left = end - start - read_to_body(connected)
            while left:
                size = connected.recv_into(buffer[: min(left, BUFFER_BYTES)], 0, flags)
                assert size, "closed too early"
                left -= size

    threads = [threading.Thread(target=work) for _ in range(connections)]
    start_s = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": perf_counter() - start_s}))


def connect(port: int, auth: PeerAuth) -> socket.socket:
    """A connection, plain or with TLS."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    plain.settimeout(None)  # one receive waits for a whole buffer
    if auth.tls is None:
        return plain
    return auth.tls.client_context().wrap_socket(plain, server_hostname=SERVER_NAME)


def read_to_body(connected: socket.socket) -> int:
    """Read a head; how much of the body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connected.recv(4096)
        assert piece, "no answer"
        data += piece
    assert data.split(b" ", 2)[1] == b"206", data[:200]
    return len(data.partition(b"\r\n\r\n")[2])


def main() -> None:
    """See the module."""
    kind, port, *rest = sys.argv[1:]
    match kind:
        case "peers":
            serve_peers(int(port), rest[0], rest[1:])
        case "asyncio":
            serve_asyncio(int(port), rest[0])
        case "starlette":
            serve_starlette(int(port), rest[0])
        case "read":
            read(int(port), int(rest[0]), int(rest[1]), rest[2], rest[3:])


if __name__ == "__main__":
    main()
