"""Runs one contender as a process and says what it cost; checks what it left on disk.

Knows nothing of tools and servers. A contender that fails or hangs is a result like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import xxhash

TIMEOUT_S = 300.0  # three times the slowest tool on 4 GiB
READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must be."""

    size_bytes: int
    xxh3: str


Tree = Mapping[str, Digest]


@dataclass(frozen=True, slots=True)
class Cost:
    """One run. synced_s: until the bytes were on the disk and not only in memory."""

    wall_s: float
    synced_s: float
    cpu_s: float
    peak_bytes: int
    output: str
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Cost:
    """Run the command with its output in files of `folder`, then sync the disk.

    Dirty pages of earlier runs are written before the clock starts.
    """
    os.sync()
    output, errors = folder / "stdout", folder / "stderr"
    child = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]
    start_s = perf_counter()
    with subprocess.Popen(
        [*child, str(output), str(errors), *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            text, trouble = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return _failed(perf_counter() - start_s, f"not done after {TIMEOUT_S:.0f} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        return _failed(perf_counter() - start_s, _last_line(trouble))
    result = json.loads(text)
    sync_start_s = perf_counter()
    os.sync()
    wall_s = float(result["wall_s"])
    failure = ""
    if result["exit"]:
        said = _last_line(errors.read_text(errors="replace"))
        failure = f"exit code {result['exit']}: {said}"
    return Cost(
        wall_s=wall_s,
        synced_s=wall_s + perf_counter() - sync_start_s,
        cpu_s=float(result["cpu_s"]),
        peak_bytes=int(result["peak_bytes"]),
        output=output.read_text(errors="replace"),
        failure=failure,
    )


def tree_of(directory: Path) -> dict[str, Digest]:
    """Digests of all files below, by relative path."""
    return {
        path.relative_to(directory).as_posix(): digest_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def digest_of(path: Path) -> Digest:
    """Size and XXH3-128 of a file."""
    state = xxhash.xxh3_128()
    size_bytes = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(READ_BYTES))
        while count := file.readinto(buffer):
            state.update(buffer[:count])
            size_bytes += count
    return Digest(size_bytes, state.hexdigest())


def difference(directory: Path, expected: Tree) -> str:
    """What is wrong with what a contender left in `directory`; empty if nothing."""
    for name, digest in expected.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != digest.size_bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {digest.size_bytes}"
        if digest_of(path) != digest:
            return f"{name} has wrong content"
    return ""


def warm(directory: Path) -> None:
    """Read every file, so that servers answer from memory."""
    buffer = bytearray(READ_BYTES)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def _failed(wall_s: float, failure: str) -> Cost:
    return Cost(wall_s, wall_s, 0.0, 0, "", failure or "failed without a word")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
