"""Loaders of tensors reading from a disk: cold, warm, and what the disk itself gives.

Everybody has the same: files out of the page cache, free memory put together, a rest, and then a
turn that begins one place later each round. What memory is read into decides more than how: a
virtio disk takes scattered pages one small request at a time (`modelcache/store/blocks.py`). So
fio reads the same files twice, with buffers as it makes them and with buffers in huge pages, which
is as much as the disk gives; deeper queues, more jobs and other sizes of requests give no more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from bench import measure
from bench.memory import back_memory
from modelcache.loader.memory import free_huge_bytes

Run = dict[str, Any]
Load = Callable[[str, str, int, Sequence[str]], Run]
"""(case, loader, round, arguments) -> the run."""

REST_S = 2.0  # the same for all; more changes nothing here, which is the case "rests"
RESTS_S = (0.0, 2.0, 5.0, 10.0, 20.0)
READ_AHEAD_KIB = 128  # Linux's default for disks
COLD = "disk, cold"
WARM = "disk, warm"
USUAL = f"disk, cold, read-ahead {READ_AHEAD_KIB} KiB"
RESTED = "disk, cold, after {:.0f} s of rest"
FIO = "fio, O_DIRECT, small pages"
LIMIT = "limit: fio, O_DIRECT, huge pages"
FIO_DEPTH = 8
COMPACT = Path("/proc/sys/vm/compact_memory")


def cold(load: Load, loaders: Sequence[str], model: Path, rounds: int) -> list[Run]:
    """Past what a disk has been left with by others."""
    runs: list[Run] = []
    for number in range(rounds):
        for how in turns([*loaders, FIO, LIMIT], number):
            runs += _cold_turn(load, COLD, how, number, model)
    return runs


def usual(load: Load, loaders: Sequence[str], model: Path, rounds: int) -> list[Run]:
    """Cold, with the read-ahead that Linux gives to disks; direct reads do not care."""
    runs: list[Run] = []
    with _read_ahead(model) as changed:
        for number in range(rounds if changed else 0):
            for how in turns([*loaders, LIMIT], number):
                runs += _cold_turn(load, USUAL, how, number, model)
    return runs


def warm(load: Load, loaders: Sequence[str], model: Path, rounds: int) -> list[Run]:
    """All of it in the page cache."""
    runs: list[Run] = []
    for number in range(rounds):
        for how in turns(loaders, number):
            measure.warm(model)
            runs.append(load(WARM, how, number, [str(model)]))
    return runs


def rests(load: Load, loaders: Sequence[str], model: Path, rounds: int) -> list[Run]:
    """Whether a disk that rested gives more: up, and in the next round down."""
    del loaders
    runs: list[Run] = []
    for number in range(rounds):
        for rest_s in RESTS_S[:: -1 if number % 2 else 1]:
            for how in turns(["safetensors", LIMIT], number):
                case = RESTED.format(rest_s)
                runs += _cold_turn(load, case, how, number, model, rest_s=rest_s)
    return runs


def turns(loaders: Sequence[str], number: int) -> list[str]:
    """Nobody is always the first."""
    turn = number % len(loaders)
    return [*loaders[turn:], *loaders[:turn]]


def _cold_turn(
    load: Load, case: str, how: str, number: int, model: Path, *, rest_s: float = REST_S
) -> list[Run]:
    make_cold(model)
    compact()
    sleep(rest_s)
    free = free_huge_bytes()
    if how in {FIO, LIMIT}:
        found = _fio(model, case, how, number)
    else:
        found = [load(case, how, number, [str(model)])]
    return [{**run, "free_huge_bytes": free} for run in found]


def make_cold(folder: Path) -> None:
    """Put every file out of the page cache."""
    os.sync()
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def compact() -> None:
    """Put free memory together, so that nobody has only the pieces that others left."""
    if os.access(COMPACT, os.W_OK):
        COMPACT.write_text("1")


@contextmanager
def _read_ahead(model: Path) -> Iterator[bool]:
    """The usual one. It is the machine's, so it is put back whatever happens."""
    device = model.stat().st_dev
    setting = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    if not os.access(setting, os.W_OK):
        yield False
        return
    before = setting.read_text()
    setting.write_text(str(READ_AHEAD_KIB))
    try:
        yield True
    finally:
        setting.write_text(before)


def _fio(model: Path, case: str, how: str, number: int) -> list[Run]:
    """Large reads, several at once, one file behind the other."""
    program = shutil.which("fio")
    if program is None:
        print("  fio is not installed: apt-get install fio", file=sys.stderr)
        return []
    files = sorted(map(str, model.glob("*.safetensors")))
    load = os.getloadavg()[0]
    back_memory()
    huge = int(how == LIMIT)  # of fio's own kinds of memory none is in transparent huge pages
    done = subprocess.run(
        [
            *(program, "--name=read", f"--filename={':'.join(files)}", "--readonly", "--rw=read"),
            *("--direct=1", "--bs=8M", "--ioengine=libaio", f"--iodepth={FIO_DEPTH}"),
            *("--thread", "--mem=malloc"),
            *("--file_service_type=sequential", "--output-format=json"),
        ],
        env={**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={huge}"},
        capture_output=True,
        text=True,
        check=True,
    )
    job = json.loads(done.stdout)["jobs"][0]
    size, seconds = job["read"]["io_bytes"], job["read"]["runtime"] / 1000
    run = {
        "case": case,
        "loader": how,
        "round": number,
        "bytes": size,
        "all_s": seconds,
        "cpu_s": (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds,
        "load": load,
    }
    print(f"  {run}", file=sys.stderr)
    return [run]
