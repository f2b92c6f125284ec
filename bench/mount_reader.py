"""Reads below a folder, in one of the ways that programs read weights; prints what it took.

    python -m bench.mount_reader FOLDER sequential|mmap|tensor|random [COUNT SIZE]

A process of its own: nobody else's interpreter stands between it and the kernel.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

BLOCK_BYTES = 1 << 20
SUFFIX = ".safetensors"
SEED = 7


def main(folder: str, how: str, *more: str) -> None:
    """Read, and say how long it took and how many bytes that were."""
    files = sorted(str(path) for path in Path(folder).iterdir() if path.name.endswith(SUFFIX))
    ways: dict[str, Callable[[], tuple[int, list[float]]]] = {
        "sequential": lambda: (sum(map(sequential, files)), []),
        "mmap": lambda: (sum(map(mapped, files)), []),
        "tensor": lambda: (tensor(files[-1]), []),
        "random": lambda: scattered(files, *map(int, more)),
    }
    started_s = perf_counter()
    size_bytes, each_s = ways[how]()
    seconds = perf_counter() - started_s
    print(json.dumps({"seconds": seconds, "bytes": size_bytes, "each_s": each_s}))


def sequential(file: str) -> int:
    """From the start to the end, a block at a time, into the same memory."""
    buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    fd = os.open(file, os.O_RDONLY)
    done = 0
    while size := os.preadv(fd, [buffer], done):
        done += size
    os.close(fd)
    return done


def mapped(file: str) -> int:
    """The same through a mapping."""
    buffer = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    with open(file, "rb") as opened:  # noqa: PTH123 - as readers do
        view = memoryview(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ))
    for start in range(0, len(view), BLOCK_BYTES):
        piece = view[start : start + BLOCK_BYTES]
        buffer[: len(piece)] = piece
    return len(view)


def tensor(file: str) -> int:
    """The header, and then the first tensor that it names."""
    fd = os.open(file, os.O_RDONLY)
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
    header = json.loads(os.pread(fd, length, 8))
    header.pop("__metadata__", None)
    start, end = min(entry["data_offsets"] for entry in header.values())
    done = start
    while done < end:
        done += len(os.pread(fd, min(BLOCK_BYTES, end - done), 8 + length + done))
    os.close(fd)
    return end - start


def scattered(files: list[str], count: int, size: int) -> tuple[int, list[float]]:
    """`count` reads of `size` bytes here and there, the same places in every run."""
    chosen = random.Random(SEED)
    opened = [(os.open(file, os.O_RDONLY), os.stat(file).st_size) for file in files]  # noqa: PTH116
    each_s = []
    done = 0
    for _ in range(count):
        fd, whole = chosen.choice(opened)
        start = chosen.randrange((whole - size) // 4096) * 4096
        started_s = perf_counter()
        done += len(os.pread(fd, size, start))
        each_s.append(perf_counter() - started_s)
    return done, each_s


if __name__ == "__main__":
    main(*sys.argv[1:])
