"""Loaders of tensors side by side: cold and warm, from a disk, from S3, and while a model arrives.

Every loader runs as a process of its own, in turns, and loads all tensors of the same sharded
model to the CPU (`bench/peers/load_tensors.py`); for the disk see `bench/load_disk.py`. The model
that arrives comes over a link of a fixed rate, between two network namespaces.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench import load_disk, measure
from bench.load_disk import COLD, LIMIT, USUAL, WARM, Run
from tests.servers.minio import Minio
from tests.servers.process import ServerUnavailable
from tests.servers.uploads import upload_tree
from tests.swarm.hosts import Origin
from tests.swarm.network import Network, can_make_namespaces

GIB = 1 << 30
GB = 1e9
MIB = 1 << 20
SHARDS = 4
ARRIVING_MBIT_S = 800.0
BUCKET = "load"
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
ON_DISK = {
    "cold": load_disk.cold,
    "usual": load_disk.usual,
    "warm": load_disk.warm,
    "rests": load_disk.rests,
}
CASES = (*ON_DISK, "s3", "arriving")
SHOWN = (COLD, USUAL, WARM, "S3", "arriving")


def measure_loaders(
    folder: Path, rounds: int, *, quick: bool, cases: Sequence[str] = CASES
) -> list[Run]:
    """Runs of these cases; those that this machine cannot do say so and are left out."""
    size = GIB if quick else 2 * GIB
    write_model(folder / "model", size)
    runs: list[Run] = []
    for case in cases:
        try:
            if case in ON_DISK:
                runs += _from_disk(case, folder, rounds)
            else:
                runs += (_from_s3 if case == "s3" else _arriving)(folder, rounds)
        except ServerUnavailable as error:
            print(f"  {case}: left out: {error}", file=sys.stderr)
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


def _from_disk(case: str, folder: Path, rounds: int) -> list[Run]:
    def load(case: str, how: str, number: int, arguments: Sequence[str]) -> Run:
        return _load(case, how, number, folder, arguments)

    loaders = [how for how, package in DISK_LOADERS.items() if _installed(how, package)]
    return ON_DISK[case](load, loaders, folder / "model", rounds)


def _installed(how: str, package: str | None) -> bool:
    missing = [p for p in ("torch", package) if p and importlib.util.find_spec(p) is None]
    if missing:
        print(f"  {how}: {missing[0]} is not installed; make .venv/.load", file=sys.stderr)
    return not missing


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
    pairs = dict.fromkeys((run["case"], run["loader"]) for run in runs)
    shown = [pair for pair in pairs if pair[0] in SHOWN]
    for case, how in sorted(shown, key=lambda pair: SHOWN.index(pair[0])):
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


def rest_rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What a mapping and the disk itself gave after each rest, in GB/s."""
    found = []
    for rest_s in load_disk.RESTS_S:
        case = load_disk.RESTED.format(rest_s)
        size = max((run["bytes"] for run in _chosen(runs, case)), default=0) / GB
        seconds = [_seconds(runs, case, how) for how in ("safetensors", LIMIT)]
        if size:
            found.append([f"{rest_s:.0f}", *(f"{size / s:.2f}" if s else "" for s in seconds)])
    return found


def targets(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """What we promised ourselves, and what came of it."""
    found = []

    def ratio(what: str, case: str, how: str, other: str, wanted: float, *, less: bool) -> None:
        mine, theirs = _seconds(runs, case, how), _seconds(runs, case, other)
        if mine and theirs:
            got = mine / theirs if less else theirs / mine
            met = got <= wanted if less else got >= wanted
            most = "" if less or other == LIMIT else _most(runs, case, theirs)
            found.append((what, f"{wanted}x", f"{got:.2f}x{most}", met))

    ratio("load, cold, of what the disk gives", COLD, "modelcache", LIMIT, 0.9, less=False)
    ratio("load, cold, against safetensors", COLD, "modelcache", "safetensors", 2, less=False)
    usual = "load, cold, against safetensors, usual read-ahead"
    ratio(usual, USUAL, "modelcache", "safetensors", 2, less=False)
    copy = "safetensors-copy"
    ratio("load, warm, against mmap and copy", WARM, "modelcache", copy, 1, less=False)
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


def _most(runs: Sequence[Mapping[str, Any]], case: str, theirs_s: float) -> str:
    """What nobody could exceed, since the disk gives no more."""
    limit_s = _seconds(runs, case, LIMIT)
    return f" (the disk allows {theirs_s / limit_s:.2f}x)" if limit_s else ""


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
