"""The second pull of a model that is there: whole processes, as an init container runs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from bench import measure
from bench.contenders import Task, modelcache
from bench.origins import BUCKET, Origins, Scenario, Transport
from tests.servers.process import find_program

SIZE_BYTES = 1 << 30


def measure_warm(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Pull once, then again in four ways; wall seconds of each run."""
    origins = Origins(folder)
    runs: list[dict[str, Any]] = []
    with (
        origins.prepared(Scenario.MODEL, SIZE_BYTES),
        origins.serving(Scenario.MODEL, Transport.S3) as origin,
    ):
        place = folder / "warm"
        for name in ("store", "scratch"):
            (place / name).mkdir(parents=True)
        environment = {**origin.environment, "HOME": str(place)}
        pull = modelcache(Task(origin, place / "store", place / "scratch"))
        first = measure.run(pull, environment, place / "scratch")
        if first.failure:
            raise RuntimeError(first.failure)
        list_program = find_program("aws", "not needed") if shutil.which("aws") else None
        ways = {
            "asking the origin": pull,
            "within --max-age": [*pull, "--max-age", "1h"],
            "modelcache path": [
                *(pull[0], "path", f"s3://{BUCKET}/{origin.scenario}"),
                *("--store", str(place / "store")),
            ],
            "python -c pass": [os.path.realpath(find_program("python3", "")), "-c", "pass"],
        }
        if list_program:
            ways["aws s3 sync"] = [
                *(list_program, "s3", "sync", f"s3://{BUCKET}/{origin.scenario}"),
                str(Path(first.output.strip())),
            ]
        for number in range(rounds):
            for way, command in ways.items():
                cost = measure.run(command, environment, place / "scratch")
                runs.append({"way": way, "round": number, **_plain(cost)})
        shutil.rmtree(place)
    return runs


def _plain(cost: measure.Cost) -> dict[str, Any]:
    plain = cost.to_json()
    del plain["output"]
    return plain
