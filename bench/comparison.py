"""`python -m bench pull`: every tool fetches the same files from the same server, in one run.

Tools take turns within each round, and the order is turned by one from round to round, so that a
machine that grows slower meanwhile is slower for all. The limits of the machine take their turns
like the tools. A tool that fails or leaves wrong files is listed as such.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import measure
from bench.contenders import DISK, HUB, LIMITS, MODELCACHE, SKOPEO, TOOLS, Task, Unavailable
from bench.origins import Origin, Origins, Scenario, Transport

MEASURED: Final = {
    Scenario.FILE: tuple(Transport),
    Scenario.MODEL: (
        Transport.HTTP,
        Transport.S3,
        Transport.GCS,
        Transport.OCI,
        Transport.OCI_TAR,
        Transport.HF,
    ),
    Scenario.SMALL: (Transport.HTTP, Transport.S3),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One tool, once. seconds: of the work alone, where the tool says so; else None.

    report: what modelcache kept about its own pull.
    """

    scenario: str
    transport: str
    tool: str
    round: int
    size_bytes: int
    cost: measure.Cost
    seconds: float | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what the tool printed."""
        plain = asdict(self)
        del plain["cost"]["output"]
        return plain


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of it to run. sizes: bytes of each scenario."""

    scenarios: Sequence[Scenario]
    transports: Sequence[Transport]
    rounds: int
    sizes: dict[Scenario, int]
    tools: Sequence[str] = tuple(TOOLS)


def compare(extent: Extent, folder: Path) -> list[Run]:
    """Run everything below `folder`, which must be on the disk to be measured."""
    runs: list[Run] = []
    origins = Origins(folder)
    for scenario in extent.scenarios:
        with origins.prepared(scenario, extent.sizes[scenario]):
            for transport in MEASURED[scenario]:
                if transport not in extent.transports:
                    continue
                with origins.serving(scenario, transport) as origin:
                    origins.warm(origin)
                    runs += _rounds(origin, extent, folder)
    return runs


def _rounds(origin: Origin, extent: Extent, folder: Path) -> list[Run]:
    runs: list[Run] = []
    tools = [tool for tool in extent.tools if _applies(tool, origin)]
    # Deleting many files makes the next creations slow on ext4, so it waits for the end.
    with tempfile.TemporaryDirectory(dir=folder, prefix="targets-") as targets:
        for number in range(extent.rounds):
            turn = number % max(1, len(tools))
            for tool in tools[turn:] + tools[:turn]:
                place = Path(tempfile.mkdtemp(dir=targets))
                run = _run(tool, origin, number, place)
                if run is None:
                    continue
                _tell(run)
                runs.append(run)
                if origin.scenario is not Scenario.SMALL:
                    shutil.rmtree(place)
    return runs


def _applies(tool: str, origin: Origin) -> bool:
    return tool not in LIMITS or origin.scenario is Scenario.FILE


def _run(tool: str, origin: Origin, number: int, place: Path) -> Run | None:
    target, scratch = place / "target", place / "scratch"
    target.mkdir()
    scratch.mkdir()
    try:
        command = TOOLS[tool](Task(origin, target, scratch))
    except Unavailable as error:
        if not number:
            print(f"  {tool}: {error}", file=sys.stderr)
        return None
    environment = {**origin.environment, "HOME": str(scratch)}
    cost = measure.run(command, environment, scratch)
    seconds: float | None = None
    report: dict[str, Any] = {}
    tree = target
    if not cost.failure and tool in LIMITS:
        seconds = float(json.loads(cost.output)["seconds"])
    if not cost.failure and tool == MODELCACHE:
        tree = Path(cost.output.strip())
        (path,) = target.glob("models/*/report.json")
        report = json.loads(path.read_bytes())
        seconds = float(report["wall_s"])
    if not cost.failure and tool == HUB:
        tree = Path(cost.output.strip())
    if not cost.failure and tool == SKOPEO:
        _name_layers(target)
    if not cost.failure and tool not in LIMITS:
        cost = _checked(cost, tree, origin)
    return Run(
        origin.scenario, origin.transport, tool, number, origin.size_bytes, cost, seconds, report
    )


def _name_layers(target: Path) -> None:
    """Give the layers of skopeo's folder the names that the manifest has for them."""
    manifest = json.loads((target / "manifest.json").read_bytes())
    for layer in manifest["layers"]:
        title = target / layer["annotations"]["org.opencontainers.image.title"]
        (target / layer["digest"].removeprefix("sha256:")).rename(title)


def _checked(cost: measure.Cost, tree: Path, origin: Origin) -> measure.Cost:
    wrong = measure.difference(tree, origin.tree)
    if not wrong:
        return cost
    return measure.Cost(cost.wall_s, cost.synced_s, cost.cpu_s, cost.peak_bytes, cost.output, wrong)


def _tell(run: Run) -> None:
    where = f"  {run.scenario}/{run.transport} {run.round + 1}: {run.tool:42}"
    if run.cost.failure:
        print(f"{where} failed: {run.cost.failure}", file=sys.stderr)
        return
    seconds = run.seconds if run.tool in LIMITS and run.seconds else run.cost.wall_s
    gigabytes = run.size_bytes / 1e9
    extra = "" if run.tool == DISK else f"  {run.cost.peak_bytes / 2**20:6.0f} MiB"
    print(
        f"{where} {seconds:7.2f} s  {gigabytes / seconds:5.2f} GB/s  "
        f"{run.cost.cpu_s / gigabytes:5.2f} cpu-s/GB{extra}",
        file=sys.stderr,
    )
