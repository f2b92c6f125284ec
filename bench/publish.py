"""How long a volume of a warm model takes to be there: kubelet's call to the driver, answered.

The model is wanted and warm, as with a ModelPrefetch or a second pod. Side by side in each round:
`publish` through driver and agent, and the two system calls of a bind mount alone, by `mount(8)`,
which is what no driver can be faster than by much.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from modelcache.mounts import mounts_below, unmount
from tests.agent.nodes import node_settings
from tests.csi.driver import running_driver

VOLUMES = 100
TARGET_S = 0.020
DRIVER, MOUNT = "NodePublishVolume", "mount --bind"


def measure_publishing(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds of each volume, by what made it. Needs root."""
    pods, model = folder / "pods", folder / "model"
    for each in (pods, model):
        each.mkdir()
    (model / "weights").write_bytes(b"w" * (1 << 20))
    settings = node_settings(
        folder / "store", node="n", socket=folder / "a.sock", listen="", volume_roots=(str(pods),)
    )
    runs = []
    try:
        with running_driver(settings, folder / "csi.sock") as driver:
            ref = f"file://{model}"
            driver.ask.publish(pods / "first", model=ref)
            for number in range(rounds):
                times: dict[str, list[float]] = {DRIVER: [], MOUNT: []}
                for count in range(VOLUMES):
                    name = f"v{number}-{count}"
                    started_s = perf_counter()
                    driver.ask.publish(pods / name, volume_id=name, model=ref)
                    times[DRIVER].append(perf_counter() - started_s)
                    driver.ask.unpublish(pods / name, volume_id=name)
                    times[MOUNT].append(_mount(model, pods / name))
                runs += [
                    {"round": number, "what": what, "seconds": found}
                    for what, found in times.items()
                ]
    finally:
        for mounted in mounts_below(pods):
            unmount(Path(mounted.target))
    return runs


def _mount(source: Path, target: Path) -> float:
    target.mkdir()
    started_s = perf_counter()
    subprocess.run(["mount", "--bind", "-o", "ro", str(source), str(target)], check=True)
    took_s = perf_counter() - started_s
    unmount(target)
    target.rmdir()
    return took_s


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What, median and 99th percentile in ms."""
    found = []
    for what in (DRIVER, MOUNT):
        times = _times(runs, what)
        found.append(
            [what, f"{median(times) * 1e3:.1f}", f"{times[len(times) * 99 // 100] * 1e3:.1f}"]
        )
    return found


def target(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, bool]:
    """What we promised ourselves, and what came of it."""
    p50_s = median(_times(runs, DRIVER))
    said = f"{p50_s * 1e3:.1f} ms"
    return "publish of a warm model, p50", f"{TARGET_S * 1e3:.0f} ms", said, p50_s <= TARGET_S


def _times(runs: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    return sorted(second for run in runs if run["what"] == what for second in run["seconds"])
