"""Direct or buffered: the pull alone, the first read after it, and both where memory is tight.

`--io auto` (modelcache/transfer/policy.py) rests on these numbers. A reader that follows is played
by reading every byte of the snapshot once, as a loader does. Memory is made tight by a memory
cgroup around the pull, where the machine lets us make one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import measure
from bench.contenders import Task, modelcache
from bench.origins import Origins, Scenario, Transport

SIZE_BYTES = 3 << 30
TIGHT_BYTES = 768 << 20
CGROUPS = Path("/sys/fs/cgroup")
MODES = ("direct", "buffered")


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
            for memory in ("plenty", "tight"):
                if memory == "tight" and procs is None:
                    continue
                for mode in MODES:
                    place = folder / "io"
                    for name in ("store", "scratch"):
                        (place / name).mkdir(parents=True)
                    command = modelcache(Task(origin, place / "store", place / "scratch"))
                    command += ["--io", mode]
                    if memory == "tight":
                        command = ["sh", "-c", f'echo $$ > {procs}; exec "$@"', "sh", *command]
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
