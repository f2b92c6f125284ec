"""Streaming mounts for tests: served by a process of their own, read by this one or by others.

This process never maps a page of a mount that it serves: a fault would wait with the interpreter's
lock for an answer that needs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from modelcache.mounts import mounts_at, unmount
from tests.main.support import PROGRAM

CHUNK_BYTES = 4 << 20
WAIT_S = 30.0
END_S = 120.0  # a process that publishes waits for the disk, with all that others wrote to it
FUSE = Path("/dev/fuse")

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not FUSE.exists(), reason="a streaming mount needs root and /dev/fuse"
)


def kernel() -> tuple[int, int]:
    """Its version."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)))


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount, and who serves it."""

    target: Path
    store: Path
    log: Path
    process: subprocess.Popen[str]
    told: dict[str, Any]

    def logged(self, what: str) -> str:
        """The first line of the log that has this; waits for it."""
        return until(
            lambda: next((line for line in self.lines() if what in line), ""), f"no {what!r}"
        )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


def until(holds: Callable[[], Any], why: str) -> Any:
    """What `holds` gives as soon as that is something."""
    end_s = monotonic() + WAIT_S
    while not (found := holds()):
        assert monotonic() < end_s, why
        sleep(0.02)
    return found


def covered(target: Path) -> list[int]:
    """The mounts there as soon as they are two: the stream, and what covers it."""
    return until(
        lambda: [each.mount_id for each in found] if len(found := mounts_at(target)) == 2 else [],
        "not covered",
    )


@contextmanager
def streaming(tmp_path: Path, ref: str, *options: str, **env: str) -> Iterator[Mount]:
    """`mount --stream`, from when it is there until the end of the test."""
    target, store, log = tmp_path / "mnt", tmp_path / "store", tmp_path / "log"
    environment = {
        **os.environ,
        "MODELCACHE_STORE": str(store),
        "MODELCACHE_STORE_CHUNK_BYTES": str(CHUNK_BYTES),
        "MODELCACHE_TRANSFER_STALL_TIMEOUT_S": "60",
        **env,
    }
    command = [PROGRAM, "mount", ref, target, "--stream", "--foreground", "--json", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    try:
        told = _document(process.stdout, log)
        yield Mount(target, store, log, process, told)
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_S)
        process.kill()
        process.wait()
        process.stdout.close()
        if mounts_at(target):
            unmount(target)


def _document(lines: Any, log: Path) -> dict[str, Any]:
    said = ""
    for line in lines:
        said += line
        with suppress(ValueError):
            return json.loads(said)
    raise AssertionError(f"it ended: {said} {log.read_text()}")


def reading(target: Path, code: str) -> subprocess.Popen[str]:
    """A program that reads below a mount; `read(name, start, size)` and `view(name)` are there."""
    prelude = f"""
import errno, hashlib, mmap, os, random, sys
def read(name, start, size):
    fd = os.open({str(target)!r} + "/" + name, os.O_RDONLY)
    try:
        return os.pread(fd, size, start)
    finally:
        os.close(fd)
def view(name):
    fd = os.open({str(target)!r} + "/" + name, os.O_RDONLY)
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
"""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", prelude + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> str:
    """What it printed until its end."""
    said, _ = process.communicate(timeout=WAIT_S)
    return said.strip()
