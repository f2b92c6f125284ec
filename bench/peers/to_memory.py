"""The network's limit: raw sockets into reused memory. URL SIZE CONNECTIONS [CA_FILE]."""

from __future__ import annotations

import json
import mmap
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from time import perf_counter
from urllib.parse import urlsplit

REQUEST_BYTES = 64 << 20
BUFFER_BYTES = 2 << 20
HEAD_BYTES = 2048


def main() -> None:
    """Print the seconds it took, without the interpreter's start, and the bytes."""
    url, size_bytes, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ca_file = sys.argv[4] if len(sys.argv) > 4 else None
    starts = iter(range(0, size_bytes, REQUEST_BYTES))
    lock = threading.Lock()
    done: list[int] = []
    threads = [
        threading.Thread(target=_read, args=(url, size_bytes, ca_file, starts, lock, done))
        for _ in range(connections)
    ]
    start_s = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sum(done) != size_bytes:
        sys.exit(f"read {sum(done)} bytes instead of {size_bytes}")
    print(json.dumps({"seconds": perf_counter() - start_s, "bytes": size_bytes}))


def _read(  # noqa: PLR0917
    url: str,
    size_bytes: int,
    ca_file: str | None,
    starts: Iterator[int],
    lock: threading.Lock,
    done: list[int],
) -> None:
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection = socket.create_connection((parts.hostname or "", parts.port or 80))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    flags = socket.MSG_WAITALL
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca_file)
        connection = context.wrap_socket(connection, server_hostname=parts.hostname)
        flags = 0
    buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
    while True:
        with lock:
            start = next(starts, None)
        if start is None:
            return
        end = min(start + REQUEST_BYTES, size_bytes)
        asked = f"Host: {parts.netloc}\r\nRange: bytes={start}-{end - 1}"
        connection.sendall(f"GET {path} HTTP/1.1\r\n{asked}\r\n\r\n".encode())
        left = end - start - _head(connection)
        while left:
            count = connection.recv_into(buffer[: min(left, BUFFER_BYTES)], 0, flags)
            if not count:
                return
            left -= count
        done.append(end - start)


def _head(connection: socket.socket) -> int:
    """Read the head; how many bytes of the body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(HEAD_BYTES)
        if not piece:
            raise ConnectionError("closed in the head")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if b"\r\ncontent-range:" not in head.lower():  # rclone says 200 with a range
        raise ConnectionError(head.split(b"\r\n", 1)[0].decode())
    return len(rest)


if __name__ == "__main__":
    main()
