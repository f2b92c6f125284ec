"""Streaming mounts beside a bind mount, rclone's mount and s3fs: complete models, and empty nodes.

Three questions. What does a file that is complete cost through the mount? What does who reads at
once, on a node that has nothing, wait for? And how much longer than the download takes who reads
all of a model while it arrives? All of it needs root; a tool that is not installed is left out.

Of each way of reading a complete model the best run counts: what else a machine does makes it only
slower. Cold means that no page of the mount nor of what lies behind it is in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from bench.origins import KeptMinio
from modelcache.mounts import mounts_at, unmount
from tests.main.support import PROGRAM
from tests.servers.minio import Minio
from tests.servers.models import write_model
from tests.servers.nginx import Nginx
from tests.servers.uploads import upload_tree

GB = 1e9
MIB = 1 << 20
SIZE_BYTES = 1 << 30
SHARDS = 4
BUCKET = "models"
WAIT_S = 120.0
TURNS = 5  # of each way of reading a complete model, for who is compared to targets
TURNS_OF_OTHERS = 2
RATE_MB = 100  # of the origin, where its bandwidth is what everybody waits for
CHUNK_BYTES = 16 * MIB
BIND, PASSED = "bind mount", "stream, passthrough"
COVERED, ASKED = "stream, without passthrough", "stream, page cache of FUSE"
OURS = (BIND, PASSED, COVERED, ASKED)
STREAM, RCLONE, S3FS = "mount --stream", "rclone mount", "s3fs"
READS = {  # name: (how, warm pages of the mount, warm pages behind it)
    "sequential, cold": (("sequential",), False, False),
    "sequential, hot": (("sequential",), True, True),
    "mmap, hot behind": (("mmap",), False, True),
    "4 KiB at random, cold": (("random", "200", "4096"), False, False),
    "1 MiB at random, cold": (("random", "100", str(MIB)), False, False),
}
COMPLETE, EMPTY, FIRST, WHOLE = "complete", "empty", "first", "whole"


@dataclass(slots=True)
class Mounted:
    """A mount, and the folders whose files lie behind it."""

    name: str
    target: Path
    behind: tuple[Path, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def end(self) -> None:
        """Unmount, and wait for who serves it."""
        for _ in range(2):
            if mounts_at(self.target):
                unmount(self.target)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT_S)


def measure_mounts(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """All studies; see the module."""
    if os.geteuid() != 0:
        sys.exit("bench mount needs root")
    source = folder / "www" / "m"
    write_model(source, SIZE_BYTES, SHARDS)
    with KeptMinio(folder / "minio") as minio:
        upload_tree(minio, BUCKET, "m", source)
    runs: list[dict[str, Any]] = []
    with Nginx(folder / "www") as nginx, KeptMinio(folder / "minio") as minio:
        environment = {**minio.environment(), "AWS_ENDPOINT_URL": minio.url}
        place = Place(folder, f"{nginx.url}/m/", minio, environment)
        for number in range(rounds):
            for study in (complete, empty, first, whole):
                for run in study(place, number):
                    runs.append({"round": number, "load": os.getloadavg()[0], **run})
                    print(f"  {runs[-1]}", file=sys.stderr)
    return runs


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything is."""

    folder: Path
    web: str
    minio: Minio
    environment: Mapping[str, str]

    def room(self, name: str) -> Path:
        """An empty folder."""
        path = self.folder / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


# Complete models


def complete(place: Place, number: int) -> Iterator[dict[str, Any]]:
    """Everything is here. The mounts are read in turns, in another order each round."""
    with ExitStack() as stack:
        mounted = [
            stack.enter_context(ended(mount(place)))
            for mount in (bind, passed, covered, asked, rclone_full, s3fs_full)
            if mount is not rclone_full or shutil.which("fusermount3")
            if mount is not s3fs_full or shutil.which("s3fs")
        ]
        others = [each for each in mounted if each.name not in OURS]
        for each in others:
            read(each.target, "sequential")  # now their caches have it
        for turn, (name, (how, warm, warm_behind)) in product(range(TURNS), READS.items()):
            shift = (number + turn) % len(mounted)
            for each in (*mounted[shift:], *mounted[:shift]):
                if turn >= TURNS_OF_OTHERS and each in others:
                    continue
                forget([each.target, *each.behind])
                if warm:
                    read(each.target, "sequential")
                elif warm_behind:
                    for path in files_of(each.behind):
                        read_file(path)
                yield {
                    "study": COMPLETE,
                    "tool": each.name,
                    "what": name,
                    **read(each.target, *how),
                }


def bind(place: Place) -> Mounted:
    """What `mount` makes of a model when all of it is here."""
    room = place.room(BIND)
    command(place, "mount", place.web, room / "mnt", "--store", room / "store")
    return Mounted(BIND, room / "mnt", (room / "store" / "blobs",))


def passed(place: Place) -> Mounted:
    """A streaming mount whose files the kernel reads itself."""
    return streamed(place, PASSED, passthrough=True, cover=False)


def covered(place: Place) -> Mounted:
    """One on a kernel without passthrough, as it is by default."""
    mounted = streamed(place, COVERED, passthrough=False, cover=True)
    wait_for(lambda: len(mounts_at(mounted.target)) == 2)
    return mounted


def asked(place: Place) -> Mounted:
    """One that has to be asked for every page."""
    return streamed(place, ASKED, passthrough=False, cover=False)


def streamed(place: Place, name: str, *, passthrough: bool, cover: bool) -> Mounted:
    """Begun on an empty store, and complete by now."""
    room = place.room(name)
    process = serve(
        place,
        *("mount", place.web, room / "mnt", "--stream", "--foreground", "--store", room / "store"),
        MODELCACHE_STREAM_PASSTHROUGH=str(passthrough).lower(),
        MODELCACHE_STREAM_COVER=str(cover).lower(),
    )
    read(room / "mnt", "sequential")
    snapshots = room / "store" / "snapshots"
    wait_for(lambda: any(snapshots.iterdir()))
    sleep(1.0)  # it looks four times a second whether files are complete
    return Mounted(name, room / "mnt", (room / "store" / "blobs",), [process])


def rclone_full(place: Place) -> Mounted:
    """Rclone with a cache on the disk, which will have everything."""
    return rclone(place)


def s3fs_full(place: Place) -> Mounted:
    """s3fs likewise."""
    return s3fs(place)


# Empty nodes


def empty(place: Place, number: int) -> Iterator[dict[str, Any]]:
    """Nothing is here, and the origin is as fast as it can be: what a first reader waits for."""
    tools: list[Callable[[Place], Mounted]] = [stream_s3, rclone, s3fs]
    reads = {
        "first tensor of the last shard": ("tensor",),
        "4 KiB at random": ("random", "50", "4096"),
        "1 MiB at random": ("random", "50", str(MIB)),
        "all of it": ("sequential",),
    }
    shift = number % len(tools)
    for mount in (*tools[shift:], *tools[:shift]):
        if (mount is rclone and not shutil.which("fusermount3")) or (
            mount is s3fs and not shutil.which("s3fs")
        ):
            continue
        for name, how in reads.items():
            started_s = perf_counter()
            with ended(mount(place)) as mounted:
                ready_s = perf_counter() - started_s
                found = read(mounted.target, *how)
                found |= {"ready_s": ready_s, "total_s": ready_s + found["seconds"]}
                yield {"study": EMPTY, "tool": mounted.name, "what": name, **found}


def stream_s3(place: Place) -> Mounted:
    """Ours, from the same S3."""
    room = place.room(STREAM)
    process = serve(
        place,
        *("mount", f"s3://{BUCKET}/m/", room / "mnt", "--stream", "--foreground"),
        *("--store", room / "store"),
    )
    return Mounted(STREAM, room / "mnt", (room / "store" / "blobs",), [process])


def rclone(place: Place) -> Mounted:
    """Rclone's mount with a cache on the disk."""
    room = place.room(RCLONE)
    (room / "mnt").mkdir()
    remote = (
        f":s3,provider=Minio,access_key_id={place.minio.access_key},"
        f"secret_access_key={place.minio.secret_key},endpoint='{place.minio.url}':{BUCKET}/m"
    )
    program = Path(sys.executable).with_name("rclone")
    process = subprocess.Popen(
        [
            *(program, "mount", remote, room / "mnt", "--read-only", "--allow-other"),
            *("--vfs-cache-mode", "full", "--cache-dir", room / "cache", "--no-checksum"),
            *("--config", os.devnull, "--dir-cache-time", "1h", "--vfs-read-ahead", "128M"),
        ],
        env={**os.environ, **place.environment},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: mounts_at(room / "mnt"))
    return Mounted(RCLONE, room / "mnt", (room / "cache",), [process])


def s3fs(place: Place) -> Mounted:
    """s3fs as Debian has it, with a cache on the disk."""
    room = place.room(S3FS)
    for name in ("mnt", "cache"):
        (room / name).mkdir()
    secret = room / "password"
    secret.write_text(f"{place.minio.access_key}:{place.minio.secret_key}")
    secret.chmod(0o600)
    options = (
        f"url={place.minio.url},use_path_request_style,passwd_file={secret},ro,allow_other,"
        f"use_cache={room / 'cache'},parallel_count=8"
    )
    process = subprocess.Popen(
        ["s3fs", f"{BUCKET}:/m", room / "mnt", "-f", "-o", options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: mounts_at(room / "mnt"))
    return Mounted(S3FS, room / "mnt", (room / "cache",), [process])


# An origin whose bandwidth is what everybody waits for


def first(place: Place, number: int) -> Iterator[dict[str, Any]]:
    """A MiB somewhere, right after the mount is there. Places differ from round to round."""
    del number
    for _ in range(5):
        room = place.room(FIRST)
        started_s = perf_counter()
        process = serve(place, *limited("mount", place, room), "--stream", "--foreground")
        ready_s = perf_counter() - started_s
        with ended(Mounted(FIRST, room / "mnt", (), [process])) as mounted:
            found = read(mounted.target, "random", "1", str(MIB))
            yield {"study": FIRST, "tool": STREAM, "what": "1 MiB", "ready_s": ready_s, **found}


def whole(place: Place, number: int) -> Iterator[dict[str, Any]]:
    """All of a model, one file after the other, while it arrives; and only the download."""
    del number
    room = place.room("download")
    started_s = perf_counter()
    command(place, *limited("pull", place, room))
    yield {"study": WHOLE, "tool": "pull", "what": "all", "seconds": perf_counter() - started_s}
    for how in ("sequential", "mmap"):
        room = place.room(WHOLE)
        started_s = perf_counter()
        process = serve(place, *limited("mount", place, room), "--stream", "--foreground")
        with ended(Mounted(WHOLE, room / "mnt", (), [process])) as mounted:
            read(mounted.target, how)
            seconds = perf_counter() - started_s
            yield {"study": WHOLE, "tool": STREAM, "what": how, "seconds": seconds}


def limited(what: str, place: Place, room: Path) -> tuple[str | Path, ...]:
    """A command at the rate of the slow origin."""
    target = (room / "mnt",) if what == "mount" else ()
    return (what, place.web, *target, "--store", room / "store", "--limit-rate", f"{RATE_MB}MB")


# Processes and pages


@contextmanager
def ended(mounted: Mounted) -> Iterator[Mounted]:
    """A mount, and its end."""
    try:
        yield mounted
    finally:
        mounted.end()


def command(place: Place, *arguments: str | Path) -> None:
    """Run ours to the end."""
    subprocess.run(
        [PROGRAM, *arguments, "--quiet"], env={**os.environ, **place.environment}, check=True
    )


def serve(place: Place, *arguments: str | Path, **env: str) -> subprocess.Popen[bytes]:
    """Start ours; back when it says that it is mounted."""
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        env={**os.environ, **place.environment, **env},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"{arguments[0]} ended with {process.wait()}")
    return process


def read(target: Path, *how: str) -> dict[str, Any]:
    """Read below a mount in a process of its own; seconds, bytes, and seconds of each read."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.mount_reader", str(target), *how],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{target}: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def files_of(folders: Sequence[Path]) -> list[Path]:
    """All files below some folders."""
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def forget(folders: Sequence[Path]) -> None:
    """Let the kernel keep no page of these files."""
    os.sync()
    for path in files_of(folders):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_file(path: Path) -> None:
    """Bring a file into memory."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(4 * MIB)
        while file.readinto(buffer):
            pass


def wait_for(holds: Callable[[], Any]) -> None:
    """Until something holds; raises RuntimeError when it takes too long."""
    end_s = perf_counter() + WAIT_S
    while not holds():
        if perf_counter() > end_s:
            raise RuntimeError("waited in vain")
        sleep(0.01)


# What came of it


def values(runs: Sequence[Mapping[str, Any]], key: str, **where: str) -> list[float]:
    """One number of all runs of a kind."""
    return [run[key] for run in runs if all(run[name] == value for name, value in where.items())]


def best(runs: Sequence[Mapping[str, Any]], tool: str, what: str) -> float:
    """Of all runs of a way of reading a complete model."""
    mine = [r for r in runs if (r["study"], r["tool"], r["what"]) == (COMPLETE, tool, what)]
    return min(map(shown, mine)) if mine[0]["each_s"] else max(map(shown, mine))


def shown(run: Mapping[str, Any]) -> float:
    """MB/s, or µs of a read where it is reads that count."""
    if run["each_s"]:
        return median(run["each_s"]) * 1e6
    return run["bytes"] / run["seconds"] / 1e6


def complete_rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of complete models: tools and ways of reading."""
    found = []
    for tool in dict.fromkeys(run["tool"] for run in runs if run["study"] == COMPLETE):
        row = [f"**{tool}**" if tool in {PASSED, COVERED, ASKED} else tool]
        row += [f"{best(runs, tool, what):,.0f}" for what in READS]
        found.append(row)
    return found


def empty_rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of empty nodes: from the command to the mount, and from there on."""
    found = []
    chosen = [run for run in runs if run["study"] == EMPTY]
    for tool in dict.fromkeys(run["tool"] for run in chosen):
        row = [f"**{tool}**" if tool == STREAM else tool]
        row.append(f"{median(values(chosen, 'ready_s', tool=tool)):.2f}")
        for what in dict.fromkeys(run["what"] for run in chosen):
            mine = [run for run in chosen if (run["tool"], run["what"]) == (tool, what)]
            if mine[0]["each_s"]:
                row.append(f"{median(shown(run) for run in mine) / 1e3:.1f} ms")
                continue
            row.append(f"{median(run['seconds'] for run in mine):.2f} s")
        found.append(row)
    return found


def targets(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """What we promised ourselves, and what came of it."""
    found = []

    for tool, what, least in (
        (PASSED, "sequential, cold", 0.9),
        (PASSED, "sequential, hot", 0.9),
        (PASSED, "mmap, hot behind", 0.75),
        (COVERED, "sequential, cold", 0.9),
        (COVERED, "sequential, hot", 0.65),
    ):
        is_so = best(runs, tool, what) / best(runs, BIND, what)
        found.append(
            (f"{tool}: {what}, of a bind mount", f"{least}", f"{is_so:.2f}", is_so >= least)
        )
    chunk_s = CHUNK_BYTES / (RATE_MB * 1e6)
    most_s = 2 * chunk_s + 0.05
    first_s = max(values(runs, "seconds", study=FIRST))
    found.append(
        (
            f"first MiB of an empty mount at {RATE_MB} MB/s, worst",
            f"{most_s:.2f} s",
            f"{first_s:.2f} s",
            first_s <= most_s,
        )
    )
    alone_s = median(values(runs, "seconds", study=WHOLE, tool="pull"))
    for how in ("sequential", "mmap"):
        times = median(values(runs, "seconds", study=WHOLE, tool=STREAM, what=how)) / alone_s
        found.append(
            (
                f"reading all while it arrives ({how}), of the pull",
                "1.1",
                f"{times:.2f}",
                times <= 1.1,
            )
        )
    return found
