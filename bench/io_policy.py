"""Direct or buffered: the pull alone and the first read after it, by the state memory is in.

`--io auto` (modelcache/transfer/policy.py and memory.py) rests on these numbers. A reader that
follows is played by reading every byte of the snapshot once, as a loader does. Before each pull
as much memory as the model takes is filled and freed: a guest that gives free pages back to its
host still has them just after, and no longer has them ten seconds later. Memory is made tight by
a memory control group around the pull, where the machine lets us make one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from bench import measure
from bench.contenders import Task, modelcache
from bench.origins import Origins, Scenario, Transport

SIZE_BYTES = 3 << 30
TIGHT_BYTES = 768 << 20
CGROUPS = Path("/sys/fs/cgroup")
MODES = ("direct", "buffered")
JUST_FREED = "just freed"
FREED_BEFORE = "freed 10 s before"
TIGHT = f"{TIGHT_BYTES >> 20} MiB"
IDLE_S = 10.0  # free pages are given back after about two seconds


def measure_policies(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Runs of both modes with room and without."""
    origins = Origins(folder)
    runs: list[dict[str, Any]] = []
    with (
        origins.prepared(Scenario.FILE, SIZE_BYTES),
        origins.serving(Scenario.FILE, Transport.HTTP) as origin,
        tight_memory() as procs,
    ):
        origins.warm(origin)
        for number in range(rounds):
            for memory in (JUST_FREED, FREED_BEFORE, TIGHT):
                if memory == TIGHT and procs is None:
                    continue
                for mode in MODES:
                    place = folder / "io"
                    for name in ("store", "scratch"):
                        (place / name).mkdir(parents=True)
                    command = modelcache(Task(origin, place / "store", place / "scratch"))
                    command += ["--io", mode]
                    if memory == TIGHT:
                        command = ["sh", "-c", f'echo $$ > {procs}; exec "$@"', "sh", *command]
                    _fill_and_free(place / "filler", idle_s=IDLE_S * (memory == FREED_BEFORE))
                    run = _run(command, {"HOME": str(place)}, place)
                    runs.append({"memory": memory, "mode": mode, "round": number, **run})
                    print(f"  {runs[-1]}", file=sys.stderr)
                    shutil.rmtree(place)
    return runs


def _run(command: list[str], environment: dict[str, str], place: Path) -> dict[str, Any]:
    cost = measure.run(command, environment, place / "scratch")
    if cost.failure:
        raise RuntimeError(cost.failure)
    read_start_s = perf_counter()
    for path in sorted(Path(cost.output.strip()).iterdir()):
        _read(path)
    return {
        "bytes": SIZE_BYTES,
        "pull_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "read_s": perf_counter() - read_start_s,
        "sync_s": cost.synced_s - cost.wall_s,
    }


def _fill_and_free(path: Path, *, idle_s: float) -> None:
    block = bytes(256 << 10)
    with path.open("wb", buffering=0) as file:
        for _ in range(SIZE_BYTES // len(block)):
            file.write(block)
    path.unlink()
    sleep(idle_s)


def _read(path: Path) -> None:
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def tight_memory() -> Iterator[Path | None]:
    """The cgroup.procs file of a group with little memory; None where none can be made."""
    group = _limited_group()
    try:
        yield group and group / "cgroup.procs"
    finally:
        if group is not None:
            group.rmdir()


def _limited_group() -> Path | None:
    for root, limit in ((CGROUPS, "memory.max"), (CGROUPS / "memory", "memory.limit_in_bytes")):
        group = root / f"modelcache-bench-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                (group / limit).write_text(str(TIGHT_BYTES))
                return group
            group.rmdir()
    return None
