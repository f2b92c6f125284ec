"""The disk's limit: O_DIRECT writes of aligned blocks into a preallocated file. PATH SIZE."""

from __future__ import annotations

import json
import os
import sys
import threading
from time import perf_counter

from modelcache.store.blocks import in_huge_pages

THREADS = 4
BLOCK_BYTES = 2 << 20


def main() -> None:
    """Print the seconds of the writes alone, and the bytes."""
    path, size_bytes = sys.argv[1], int(sys.argv[2]) // BLOCK_BYTES * BLOCK_BYTES
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    os.posix_fallocate(file, 0, size_bytes)
    starts = iter(range(0, size_bytes, BLOCK_BYTES))
    lock = threading.Lock()

    def write() -> None:
        block = in_huge_pages(BLOCK_BYTES)
        block[:] = os.urandom(BLOCK_BYTES)
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            if os.pwrite(file, block, start) != BLOCK_BYTES:
                os._exit(1)

    threads = [threading.Thread(target=write) for _ in range(THREADS)]
    start_s = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": perf_counter() - start_s, "bytes": size_bytes}))
    os.close(file)


if __name__ == "__main__":
    main()
