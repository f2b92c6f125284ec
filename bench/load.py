"""Loaders of tensors side by side: cold and warm, from a disk, from S3, and while a model arrives.

Every loader runs as a process of its own, in turns, and loads all tensors of the same sharded
model to the CPU (`bench/peers/load_tensors.py`). Cold: the files are put out of the page cache
before. fio reads the same files with O_DIRECT in the same rounds, for what the disk gives. The
model that arrives comes over a link of a fixed rate, between two network namespaces.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench import measure
from tests.servers.minio import Minio
from tests.servers.process import ServerUnavailable
from tests.servers.uploads import upload_tree
from tests.swarm.hosts import Origin
from tests.swarm.network import Network, can_make_namespaces

GIB = 1 << 30
GB = 1e9
MIB = 1 << 20
SHARDS = 4
REST_S = 15.0  # a virtual disk saves up an allowance: nobody should begin with what others left
ARRIVING_MBIT_S = 800.0
BUCKET = "load"
READ_AHEAD_KIB = 128  # Linux's default for disks
USUAL = f"disk, cold, read-ahead {READ_AHEAD_KIB} KiB"
FIO = "limit: fio, O_DIRECT"
DISK_LOADERS = {
    "modelcache": None,
    "safetensors": "safetensors",
    "safetensors-copy": "safetensors",
    "runai": "runai_model_streamer",
    "fastsafetensors": "fastsafetensors",
}
NAMES = {
    "modelcache": "modelcache.load",
    "modelcache-origin": "modelcache.load, through the origin",
    "modelcache-store": "modelcache.load, through the store",
    "pull": "modelcache.pull alone",
    "pull-then-load": "modelcache.pull, then load",
    "safetensors": "safetensors load_file (mmap)",
    "safetensors-copy": "safetensors (mmap) + copy",
    "runai": "Run:ai Model Streamer",
    "fastsafetensors": "fastsafetensors",
}
Run = dict[str, Any]


def measure_loaders(folder: Path, rounds: int, *, quick: bool) -> list[Run]:
    """Runs of all cases; those that this machine cannot do say so and are left out."""
    size = GIB if quick else 2 * GIB
    model = folder / "model"
    write_model(model, size)
    runs: list[Run] = []
    for number in range(rounds):
        runs += _disk_round(model, folder, number)
    for number in range(rounds):
        runs += _usual_readahead(model, folder, number)
    for case in (_from_s3, _arriving):
        try:
            runs += case(folder, rounds)
        except ServerUnavailable as error:
            print(f"  {case.__name__}: left out: {error}", file=sys.stderr)
    return runs


def write_model(folder: Path, size_bytes: int) -> None:
    """Shards of matrices of 32 MiB with a small vector behind each, in float16."""
    folder.mkdir()
    folder.chmod(0o755)
    rng = np.random.default_rng(0)
    where: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {}
        for number in range(size_bytes // SHARDS // (32 * MIB)):
            layer = f"layers.{shard}.{number}"
            tensors[f"{layer}.weight"] = np.frombuffer(rng.bytes(32 * MIB), "f2").reshape(4096, -1)
            tensors[f"{layer}.norm"] = np.ones(4096, "f2")
        save_file(tensors, folder / name)
        (folder / name).chmod(0o644)
        where |= dict.fromkeys(tensors, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _disk_round(model: Path, folder: Path, number: int) -> list[Run]:
    runs: list[Run] = []
    for cache in ("cold", "warm"):
        contenders = [how for how, package in DISK_LOADERS.items() if _installed(how, package)]
        if cache == "cold":
            contenders.append(FIO)
        turn = number % len(contenders)
        for how in contenders[turn:] + contenders[:turn]:
            (make_cold if cache == "cold" else measure.warm)(model)
            if cache == "cold":
                sleep(REST_S)
            if how == FIO:
                runs += _fio(model, number)
                continue
            runs.append(_load(f"disk, {cache}", how, number, folder, [str(model)]))
    return runs


def _usual_readahead(model: Path, folder: Path, number: int) -> list[Run]:
    """Cold, with the read-ahead that Linux gives to disks; those that do direct reads don't care.

    It is the machine's, so it is put back whatever happens.
    """
    device = model.stat().st_dev
    setting = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    if not os.access(setting, os.W_OK) or not setting.exists():
        return []
    before = setting.read_text()
    runs: list[Run] = []
    setting.write_text(str(READ_AHEAD_KIB))
    try:
        contenders = [how for how, package in DISK_LOADERS.items() if _installed(how, package)]
        turn = number % len(contenders)
        for how in contenders[turn:] + contenders[:turn]:
            make_cold(model)
            runs.append(_load(USUAL, how, number, folder, [str(model)]))
    finally:
        setting.write_text(before)
    return runs


def _installed(how: str, package: str | None) -> bool:
    missing = [p for p in ("torch", package) if p and importlib.util.find_spec(p) is None]
    if missing:
        print(f"  {how}: {missing[0]} is not installed; make .venv/.load", file=sys.stderr)
    return not missing


def make_cold(folder: Path) -> None:
    """Put every file out of the page cache."""
    os.sync()
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _fio(model: Path, number: int) -> list[Run]:
    """Large reads, several at once, one file behind the other: what we try to equal."""
    program = shutil.which("fio")
    if program is None:
        print("  fio is not installed: apt-get install fio", file=sys.stderr)
        return []
    files = sorted(map(str, model.glob("*.safetensors")))
    done = subprocess.run(
        [
            *(program, "--name=read", f"--filename={':'.join(files)}", "--readonly", "--rw=read"),
            *("--direct=1", "--bs=8M", "--ioengine=libaio", "--iodepth=8"),
            *("--file_service_type=sequential", "--output-format=json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    job = json.loads(done.stdout)["jobs"][0]
    size, seconds = job["read"]["io_bytes"], job["read"]["runtime"] / 1000
    run = {
        "case": "disk, cold",
        "loader": FIO,
        "round": number,
        "bytes": size,
        "all_s": seconds,
        "cpu_s": (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds,
        "load": os.getloadavg()[0],
    }
    print(f"  {run}", file=sys.stderr)
    return [run]


def _load(
    case: str,
    how: str,
    number: int,
    folder: Path,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    wrap: Callable[[Sequence[str]], list[str]] = list,
) -> Run:
    command = wrap([sys.executable, "-m", "bench.peers.load_tensors", how, *arguments])
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    load = os.getloadavg()[0]
    cost = measure.run(command, {"HOME": str(scratch), **(environment or {})}, scratch)
    run: Run = {"case": case, "loader": how, "round": number, "load": load}
    if cost.failure:
        run["failure"] = cost.failure
    else:
        run |= json.loads(cost.output.strip().splitlines()[-1])
    print(f"  {run}", file=sys.stderr)
    return run


def _from_s3(folder: Path, rounds: int) -> list[Run]:
    """MinIO on this machine, answering from memory."""
    model = folder / "model"
    runs: list[Run] = []
    with Minio() as server:
        upload_tree(server, BUCKET, "model", model)
        environment = {
            **server.environment(),
            "AWS_ENDPOINT_URL": server.url,
            "RUNAI_STREAMER_S3_ENDPOINT": server.url,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        names = [path.name for path in sorted(model.glob("*.safetensors"))]
        listed = ",".join(f"s3://{BUCKET}/model/{name}" for name in names)
        ways = {"modelcache-origin": "", "modelcache-store": "", "runai": listed}
        for number in range(rounds):
            for how, more in ways.items():
                if how == "runai" and not _installed(how, "runai_model_streamer"):
                    continue
                with _store(folder) as store:
                    arguments = [f"s3://{BUCKET}/model", more or store]
                    runs.append(
                        _load("S3", how, number, folder, arguments, environment=environment)
                    )
    return runs


class _store:  # noqa: N801 - used as a function
    """An empty store, and its end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "store"

    def __enter__(self) -> str:
        shutil.rmtree(self._path, ignore_errors=True)
        return str(self._path)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _arriving(folder: Path, rounds: int) -> list[Run]:
    """A quarter of the model, over a link that sets the pace."""
    if not can_make_namespaces():
        raise ServerUnavailable("needs root, ip and tc (apt-get install iproute2)")
    root = folder / "arriving"
    root.mkdir(mode=0o755)
    (name, *_) = sorted((folder / "model").glob("*.safetensors"))
    os.link(name, root / "model.safetensors")
    runs: list[Run] = []
    with (
        Network(["origin", "node"], mbit_s=ARRIVING_MBIT_S) as network,
        Origin(network, "origin", root) as origin,
    ):
        measure.warm(root)
        for number in range(rounds):
            for how in ("pull", "modelcache-store", "modelcache-origin", "pull-then-load"):
                with _store(folder) as store:
                    runs.append(
                        _load(
                            "arriving",
                            how,
                            number,
                            folder,
                            [f"{origin.url}/", store],
                            wrap=lambda command: network.command("node", command),
                        )
                    )
    return runs


# The report


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of the table in RESULTS.md: medians."""
    found = []
    for case, how in dict.fromkeys((run["case"], run["loader"]) for run in runs):
        chosen = _chosen(runs, case, how)
        if not chosen:
            found.append([case, NAMES.get(how, how), "failed", "", "", "", ""])
            continue
        size = max(run["bytes"] for run in _chosen(runs, case)) / GB
        over = [run["over_bytes"] for run in chosen if "over_bytes" in run]
        first = [run["first_s"] for run in chosen if run.get("first_s") is not None]
        all_s = median(run["all_s"] for run in chosen)
        found.append(
            [
                case,
                f"**{NAMES[how]}**" if how.startswith("modelcache") else NAMES.get(how, how),
                f"{median(first):.2f}" if first else "",
                f"{all_s:.2f}",
                f"{size / all_s:.2f}",
                f"{median(run['cpu_s'] for run in chosen) / size:.2f}",
                f"{max(over) / MIB:.0f}" if over and how != "pull" else "",
            ]
        )
    return found


def targets(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """What we promised ourselves, and what came of it."""
    found = []

    def ratio(what: str, case: str, how: str, other: str, wanted: float, *, less: bool) -> None:
        mine, theirs = _seconds(runs, case, how), _seconds(runs, case, other)
        if mine and theirs:
            got = mine / theirs if less else theirs / mine
            met = got <= wanted if less else got >= wanted
            found.append((what, f"{wanted}x", f"{got:.2f}x", met))

    cold, warm = "disk, cold", "disk, warm"
    ratio("load, cold, against fio", cold, "modelcache", FIO, 0.9, less=False)
    ratio("load, cold, against safetensors", cold, "modelcache", "safetensors", 2, less=False)
    usual = "load, cold, against safetensors, usual read-ahead"
    ratio(usual, USUAL, "modelcache", "safetensors", 2, less=False)
    copy = "safetensors-copy"
    ratio("load, warm, against mmap and copy", warm, "modelcache", copy, 1, less=False)
    ratio(
        "load while arriving, against pull", "arriving", "modelcache-store", "pull", 1.1, less=True
    )
    over = [
        run["over_bytes"] / MIB
        for run in runs
        if run["loader"].startswith("modelcache") and run["case"].startswith("disk")
    ]
    if over:
        found.append(
            ("load, memory over the model", "256 MiB", f"{max(over):.0f} MiB", max(over) <= 256)
        )
    return found


def _chosen(
    runs: Sequence[Mapping[str, Any]], case: str, how: str | None = None
) -> list[Mapping[str, Any]]:
    return [
        run
        for run in runs
        if run["case"] == case and how in {None, run["loader"]} and "failure" not in run
    ]


def _seconds(runs: Sequence[Mapping[str, Any]], case: str, how: str) -> float | None:
    chosen = [run["all_s"] for run in _chosen(runs, case, how)]
    return median(chosen) if chosen else None
