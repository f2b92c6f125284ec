"""Two HTTP clients of Python reading ranges into reused memory.

KIND URL FILE_BYTES REQUEST_BYTES CONNECTIONS; KIND is `own` or `http.client`. Prints the seconds of
the reading alone.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from urllib.parse import urlsplit

from modelcache.sources.source import HttpTarget
from modelcache.transfer.http1 import HttpConnection

BUFFER_BYTES = 2 << 20
TIMEOUT_S = 30.0

Get = Callable[[int, int, memoryview], None]  # start, end, into


def main() -> None:
    """Read the whole file in ranges, over all connections."""
    kind, url = sys.argv[1], sys.argv[2]
    file_bytes, request_bytes, connections = map(int, sys.argv[3:6])
    starts = iter(range(0, file_bytes, request_bytes))
    lock = threading.Lock()
    connect = {"own": _own, "http.client": _standard}[kind]

    def work() -> None:
        get = connect(url)
        buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            get(start, min(start + request_bytes, file_bytes), buffer)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    before, start_s = os.times(), perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, after = perf_counter() - start_s, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "bytes": file_bytes}))


def _own(url: str) -> Get:
    parts = urlsplit(url)
    target = HttpTarget(
        parts.hostname or "", parts.port or 80, False, parts.path, (("host", parts.netloc),), 1e9
    )
    connection = HttpConnection(target, connect_timeout_s=TIMEOUT_S, stall_timeout_s=TIMEOUT_S)

    def get(start: int, end: int, into: memoryview) -> None:
        connection.send(target, f"bytes={start}-{end - 1}")
        if connection.read_head().status != 206:
            raise ConnectionError("no range")
        left = end - start
        while left:
            left -= connection.read_into(into[: min(left, len(into))])
        connection.finished()

    return get


def _standard(url: str) -> Get:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def get(start: int, end: int, into: memoryview) -> None:
        connection.request("GET", parts.path, headers={"Range": f"bytes={start}-{end - 1}"})
        response = connection.getresponse()
        if response.status != 206:
            raise ConnectionError("no range")
        left = end - start
        while left:
            left -= response.readinto(into[: min(left, len(into))])
        response.read()

    return get


if __name__ == "__main__":
    main()
