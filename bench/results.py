"""Keeps what studies measured, and writes RESULTS.md and the plot from it.

Numbers are medians over the rounds of one run. Prose that explains them is in `findings.md`, by
hand, and is put at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import estimate, load, mount, publish, serve, simulate_report, swarm
from bench.autoscale import report as autoscaling
from bench.contenders import DISK, LIMITS, MEMORY_4, MEMORY_8, MODELCACHE
from bench.load_disk import LIMIT
from bench.origins import Scenario, Transport

HERE: Final = Path(__file__).parent
NUMBERS: Final = HERE / "results"
GB: Final = 1e9
MIB: Final = 1 << 20

TITLES: Final = {
    (Scenario.FILE, Transport.HTTP): "One file over HTTP (nginx)",
    (Scenario.FILE, Transport.S3): "One file over S3 (MinIO)",
    (Scenario.FILE, Transport.HTTPS): "One file over TLS (nginx)",
    (Scenario.FILE, Transport.S3_TLS): "One file over S3 with TLS (MinIO)",
    (Scenario.MODEL, Transport.HTTP): "A model of 8 shards over HTTP (nginx)",
    (Scenario.MODEL, Transport.S3): "A model of 8 shards over S3 (MinIO)",
    (Scenario.MODEL, Transport.GCS): "A model of 8 shards over GCS (fake-gcs-server)",
    (Scenario.MODEL, Transport.OCI): "A model of 8 raw layers from a registry (distribution)",
    (Scenario.MODEL, Transport.OCI_TAR): "A model of 8 tar layers from a registry (distribution)",
    (Scenario.MODEL, Transport.HF): "A model of 8 shards from a hub (nginx)",
    (Scenario.SMALL, Transport.HTTP): "Files of 64 KiB over HTTP (nginx)",
    (Scenario.SMALL, Transport.S3): "Files of 64 KiB over S3 (MinIO)",
}

GROUPED: Final = {"pull": ("scenario", "transport"), "load": ("case",)}  # measured one by one
SPEED_OF_S3: Final = {Transport.GCS: 0.9, Transport.OCI: 0.9, Transport.OCI_TAR: 0.75}


class Group:
    """All runs of one scenario over one transport."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self.runs = runs
        self.size_bytes = int(runs[0]["size_bytes"])
        self.tools = sorted(
            {str(run["tool"]) for run in runs if run["tool"] not in LIMITS},
            key=lambda tool: self.wall_s(tool) or float("inf"),
        )

    @property
    def date(self) -> str:
        """The day on which it was measured."""
        return str(self.runs[0].get("date", ""))

    def values(self, tool: str, value: Callable[[Mapping[str, Any]], float]) -> list[float]:
        """A value of each good run of a tool."""
        good = [run for run in self.runs if run["tool"] == tool and not run["cost"]["failure"]]
        return [value(run) for run in good]

    def wall_s(self, tool: str) -> float | None:
        """Median wall time; None if every run failed."""
        return _median(self.values(tool, lambda run: run["cost"]["wall_s"]))

    def synced_s(self, tool: str) -> float | None:
        """Median time until the bytes were on the disk."""
        return _median(self.values(tool, lambda run: run["cost"]["synced_s"]))

    def cpu_s_per_gb(self, tool: str) -> float | None:
        """Median CPU seconds for 10^9 bytes."""
        gigabytes = self.size_bytes / GB
        return _median(self.values(tool, lambda run: run["cost"]["cpu_s"] / gigabytes))

    def peak_bytes(self, tool: str) -> float | None:
        """Median of the largest resident set."""
        return _median(self.values(tool, lambda run: run["cost"]["peak_bytes"]))

    def seconds(self, tool: str) -> float | None:
        """Median of the work alone, where a tool tells."""
        return _median(self.values(tool, lambda run: run["seconds"] or 0.0))

    def failure(self, tool: str) -> str:
        """Why the last failed run failed."""
        found = [run["cost"]["failure"] for run in self.runs if run["tool"] == tool]
        return next((text for text in reversed(found) if text), "")

    def best_peer(self) -> tuple[str, float]:
        """The fastest other tool that did the work."""
        found = [(self.wall_s(tool), tool) for tool in self.tools if tool != MODELCACHE]
        wall_s, tool = min((wall, tool) for wall, tool in found if wall is not None)
        return tool, wall_s

    def limit_s(self) -> float | None:
        """What min(network to memory, O_DIRECT write) would need for these bytes."""
        network = [found for tool in (MEMORY_4, MEMORY_8) if (found := self.seconds(tool))]
        disk = self.seconds(DISK)
        return max(min(network), disk) if network and disk else None


def keep(study: str, numbers: Mapping[str, Any]) -> None:
    """Store what a study measured; groups of `pull` and `load` not measured now stay."""
    NUMBERS.mkdir(exist_ok=True)
    path = NUMBERS / f"{study}.json"
    runs = list(numbers["runs"])
    if study in GROUPED:
        runs = _dated(numbers)
    if study in GROUPED and path.exists():
        fresh = {_grouped(study, run) for run in runs}
        before = _dated(json.loads(path.read_text()))
        runs += [run for run in before if _grouped(study, run) not in fresh]
    path.write_text(json.dumps({**numbers, "runs": runs}, indent=1) + "\n")


def _grouped(study: str, run: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(run[key] for key in GROUPED[study])


def _dated(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs with the day of each: groups that are kept are older than the machine's line says."""
    return [{"date": numbers["machine"]["date"], **run} for run in numbers["runs"]]


def write() -> None:
    """Write RESULTS.md, and the plot where matplotlib is installed."""
    parts = ["# Results\n\nWritten by `python -m bench`; medians of the rounds of one run.\n"]
    pull = _load("pull")
    if pull:
        groups = groups_of(pull["runs"])
        parts += [
            _machine(pull["machine"]),
            _targets(groups),
            _tables(groups),
        ]
        _plot(groups)
    for study, table in TABLES:
        numbers = _load(study)
        if numbers:
            parts.append(table(numbers["runs"]))
    scaled = _load("autoscale")
    if scaled:
        parts.append(autoscaling.tables(scaled["runs"], _table))
        autoscaling.plot(scaled["runs"], HERE)
    simulated = _load("simulate")
    if simulated:
        parts.append(simulate_report.tables(simulated, _table))
        simulate_report.plots(simulated, HERE)
    findings = HERE / "findings.md"
    if findings.exists():
        parts.append(findings.read_text())
    (HERE / "RESULTS.md").write_text("\n".join(parts))


def groups_of(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[Scenario, Transport], Group]:
    """Runs by scenario and transport, in the order of the titles."""
    found: dict[tuple[Scenario, Transport], list[Mapping[str, Any]]] = {}
    for run in runs:
        key = (Scenario(run["scenario"]), Transport(run["transport"]))
        found.setdefault(key, []).append(run)
    return {key: Group(found[key]) for key in TITLES if key in found}


def _load(study: str) -> dict[str, Any] | None:
    path = NUMBERS / f"{study}.json"
    if not path.exists():
        return None
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    return (
        f"Measured on {machine['date']}: {machine['processors']} processors "
        f"({machine['processor']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"{machine['filesystem']}, Python {machine['python']}. Client and server share the "
        f"machine. Versions: {versions}.\n"
    )


def _targets(groups: Mapping[tuple[Scenario, Transport], Group]) -> str:
    """What we promised ourselves, and what came of it."""
    rows: list[tuple[str, str, str, bool]] = []
    for transport in (Transport.HTTP, Transport.S3):
        if (Scenario.FILE, transport) in groups:
            rows += _speed_rows(groups[Scenario.FILE, transport], transport)
    for transport in (Transport.HTTPS, Transport.S3_TLS):
        if (Scenario.FILE, transport) in groups:
            ratio, peer = _ratio(groups[Scenario.FILE, transport])
            said = f"{ratio:.2f}x {peer}"
            rows.append((f"one file, {transport}, against the best", "1.5x", said, ratio >= 1.5))
    rows += _source_rows(groups)
    peak = max((g.peak_bytes(MODELCACHE) or 0) for g in groups.values()) / MIB
    rows.append(("peak memory, any scenario", "600 MiB", f"{peak:.0f} MiB", peak <= 600))
    if (Scenario.SMALL, Transport.S3) in groups:
        small = groups[Scenario.SMALL, Transport.S3]
        ratio = (small.wall_s("s5cmd") or 0) / (small.wall_s(MODELCACHE) or 1)
        rows.append(("files of 64 KiB against s5cmd", "1x", f"{ratio:.2f}x", ratio > 1))
    for study, targets in TARGETS:
        numbers = _load(study)
        rows += targets(numbers["runs"]) if numbers else []
    body = [[what, want, said, "yes" if met else "**no**"] for what, want, said, met in rows]
    return "## Targets\n\n" + _table(["what", "target", "measured", "met"], body)


def _warm_rows(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    rows: list[tuple[str, str, str, bool]] = []
    for way, most_s in (("within --max-age", 0.3), ("asking the origin", 1.0)):
        wall_s = _median([run["wall_s"] for run in runs if run["way"] == way]) or 9.0
        said = f"{wall_s * 1000:.0f} ms"
        rows.append((f"second pull, {way}", f"{most_s * 1000:.0f} ms", said, wall_s < most_s))
    return rows


def _source_rows(
    groups: Mapping[tuple[Scenario, Transport], Group],
) -> list[tuple[str, str, str, bool]]:
    """The other sources beside S3, for the same model."""
    s3 = groups.get((Scenario.MODEL, Transport.S3))
    s3_s = s3.wall_s(MODELCACHE) if s3 else None
    rows: list[tuple[str, str, str, bool]] = []
    for transport, least in SPEED_OF_S3.items():
        group = groups.get((Scenario.MODEL, transport))
        wall_s = group.wall_s(MODELCACHE) if group else None
        if s3_s and wall_s:
            speed = s3_s / wall_s
            rows.append(
                (f"a model, {transport}, to S3", f"{least}x", f"{speed:.2f}x", speed >= least)
            )
    return rows


def _speed_rows(group: Group, transport: Transport) -> list[tuple[str, str, str, bool]]:
    name = f"one file, {transport}"
    ratio, peer = _ratio(group)
    rows = [(f"{name}, against the best", "2x", f"{ratio:.2f}x {peer}", ratio >= 2)]
    mine = group.wall_s(MODELCACHE) or float("inf")
    boto3 = group.wall_s("boto3")
    if boto3:
        rows.append((f"{name}, against boto3", "4x", f"{boto3 / mine:.2f}x", boto3 / mine >= 4))
    limit = group.limit_s()
    if limit:
        share = limit / mine
        rows.append((f"{name}, share of the limit", "0.9", f"{share:.2f}", share >= 0.9))
    cpu = group.cpu_s_per_gb(MODELCACHE)
    if transport is Transport.HTTP and cpu is not None:
        rows.append((f"{name}, cpu-s/GB", "0.8", f"{cpu:.2f}", cpu <= 0.8))
    return rows


def _ratio(group: Group) -> tuple[float, str]:
    peer, wall_s = group.best_peer()
    return wall_s / (group.wall_s(MODELCACHE) or float("inf")), peer


def _tables(groups: Mapping[tuple[Scenario, Transport], Group]) -> str:
    parts = ["## Side by side\n\n`python -m bench pull`\n\n![GB/s by tool](pull.png)\n"]
    for key, group in groups.items():
        rounds = len(group.values(MODELCACHE, lambda run: run["cost"]["wall_s"]))
        parts.append(
            f"### {TITLES[key]}: {group.size_bytes / GB:.2f} GB, {rounds} rounds, {group.date}\n\n"
            + _table(
                ["tool", "wall s", "GB/s", "on disk s", "cpu-s/GB", "peak MiB", "modelcache is"],
                [_row(group, tool) for tool in group.tools],
            )
            + _limits(group)
        )
    return "\n".join(parts)


def _row(group: Group, tool: str) -> list[str]:
    wall_s = group.wall_s(tool)
    if wall_s is None:
        return [tool, f"failed: {group.failure(tool)}", "", "", "", "", ""]
    mine = group.wall_s(MODELCACHE)
    return [
        f"**{tool}**" if tool == MODELCACHE else tool,
        f"{wall_s:.2f}",
        f"{group.size_bytes / GB / wall_s:.2f}",
        f"{group.synced_s(tool):.2f}",
        f"{group.cpu_s_per_gb(tool):.2f}",
        f"{(group.peak_bytes(tool) or 0) / MIB:.0f}",
        f"{wall_s / mine:.2f}x" if mine and tool != MODELCACHE else "",
    ]


def _limits(group: Group) -> str:
    lines = []
    for tool in LIMITS:
        seconds = group.seconds(tool)
        if seconds:
            lines.append(
                f"- {tool.removeprefix('limit: ')}: {group.size_bytes / GB / seconds:.2f} GB/s"
            )
    limit = group.limit_s()
    mine, alone = group.wall_s(MODELCACHE), group.seconds(MODELCACHE)
    if limit and mine and alone:
        lines.append(
            f"- modelcache's share of the lower of them: {limit / mine:.2f} as a whole process, "
            f"{limit / alone:.2f} without the interpreter's start and end"
        )
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _warm(runs: Sequence[Mapping[str, Any]]) -> str:
    ways = list(dict.fromkeys(run["way"] for run in runs))
    rows = []
    for way in ways:
        walls = [run["wall_s"] for run in runs if run["way"] == way]
        rows.append([way, f"{median(walls) * 1000:.0f}", f"{max(walls) * 1000:.0f}"])
    return (
        "## The second pull of a warm model\n\n`python -m bench warm`; whole processes.\n\n"
        + _table(["how", "median ms", "slowest ms"], rows)
    )


def _io(runs: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys((run["memory"], run["mode"]) for run in runs))
    rows = []
    for memory, mode in keys:
        chosen = [run for run in runs if (run["memory"], run["mode"]) == (memory, mode)]
        gigabytes = chosen[0]["bytes"] / GB
        pull_s = median(run["pull_s"] for run in chosen)
        read_s = median(run["read_s"] for run in chosen)
        cpu = median(run["cpu_s"] for run in chosen) / gigabytes
        slowest_s = max(run["pull_s"] for run in chosen)
        values = [pull_s, slowest_s, read_s, pull_s + read_s, cpu]
        rows.append([memory, mode, *(f"{value:.2f}" for value in values)])
    header = ["memory", "--io", "pull s", "slowest s", "first read s", "both s", "cpu-s/GB"]
    return "## Direct or buffered\n\n`python -m bench io`\n\n" + _table(header, rows)


def _client(runs: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys((run["way"], run["kind"]) for run in runs))
    rows = []
    for way, kind in keys:
        chosen = [run for run in runs if (run["way"], run["kind"]) == (way, kind)]
        rate = median(run["bytes"] / GB / run["seconds"] for run in chosen)
        cpu = median(run["cpu_s"] / (run["bytes"] / GB) for run in chosen)
        rows.append([way, kind, f"{rate:.2f}", f"{cpu:.2f}"])
    return "## HTTP clients, into memory\n\n`python -m bench client`\n\n" + _table(
        ["what", "client", "GB/s", "cpu-s/GB"], rows
    )


def _serve(runs: Sequence[Mapping[str, Any]]) -> str:
    header = ["server", "connections", "GB/s", "cpu-s/GB", "peak MiB"]
    return (
        "## Serving to peers\n\n`python -m bench serve`; CPU seconds of the server's processes.\n\n"
        + _table(header, serve.rows(runs))
    )


def _swarm(runs: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "case",
        "last ready s",
        "of size/link",
        "simulated",
        "from the origin, of size",
        "most sent by one, of size",
    ]
    return (
        "## Eight nodes on shaped links\n\n`python -m bench swarm`: agents in network namespaces, "
        "every link 200 Mbit/s each way with a queue of 10 ms at each end, TCP with Cubic, a model "
        "of 1 GiB in chunks of 2 MiB (an eighth of it where nodes do not share). Ethernet, IP and "
        "TCP take 4.5 % of a link.\n\n" + _table(header, swarm.rows(runs))
    )


def _publish(runs: Sequence[Mapping[str, Any]]) -> str:
    return (
        "## Publishing a volume\n\n`python -m bench publish`; a model that is warm and wanted, "
        "beside the bind mount alone.\n\n"
        + _table(["what", "p50 ms", "p99 ms"], publish.rows(runs))
    )


def _mount(runs: Sequence[Mapping[str, Any]]) -> str:
    ways = [f"{what}, {'µs' if 'random' in what else 'MB/s'}" for what in mount.READS]
    waits = [
        "from the command to the mount, s",
        *dict.fromkeys(run["what"] for run in runs if run["study"] == mount.EMPTY),
    ]
    return (
        "## Streaming mounts\n\n`python -m bench mount`; a model of 1 GiB in four shards. Of "
        "complete models, with a cache on the disk for rclone and s3fs, the best of each:\n\n"
        + _table(["mount", *ways], mount.complete_rows(runs))
        + "\nOf empty nodes, from MinIO on the same machine; reads begin when it is mounted:\n\n"
        + _table(["mount", *waits], mount.empty_rows(runs))
    )


def _loaded(runs: Sequence[Mapping[str, Any]]) -> str:
    header = ["case", "loader", "first tensor s", "all s", "GB/s", "cpu-s/GB", "memory over it MiB"]
    days = " and ".join(sorted({str(run.get("date", "")) for run in runs} - {""}))
    rested = load.rest_rows(runs)
    return (
        "## Loading tensors\n\n`make bench-load`; four shards in float16 to the CPU, each loader a "
        "process; medians. *Arriving* is one shard over a link of 800 Mbit/s. Each case alone: "
        f"`python -m bench load --case CASE`. Measured on {days}.\n\n"
        + _table(header, load.rows(runs))
        + (
            "\nCold, after a rest of the disk, in GB/s (`--case rests`):\n\n"
            + _table(["rest s", "safetensors load_file (mmap)", LIMIT], rested)
            if rested
            else ""
        )
    )


def _estimate(runs: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "where",
        "which",
        "starts",
        "given up",
        "median s",
        "median error",
        "within p50",
        "within p90",
    ]
    return (
        "## Predicted starts\n\n`python -m bench estimate`: what was predicted when a start began, "
        "against what came of it. On hosts: three agents in network namespaces, links of 160 and "
        "then 80 Mbit/s, models of 32 to 96 MiB, one start of twenty killed and gone on with. "
        "Simulated: four agents, 25 and then 10 Gbit/s, models of 16 to 96 GB, one node of a world "
        "of twelve dies. Aims: a median error under 15 %, 85 to 95 % within the p90.\n\n"
        + _table(header, estimate.rows(runs))
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _plot(groups: Mapping[tuple[Scenario, Transport], Group]) -> None:
    try:
        from bench.plot import draw  # noqa: PLC0415 - matplotlib is only in the bench packages
    except ImportError:
        return
    draw(groups, HERE / "pull.png")


TABLES: Final = (
    ("warm", _warm),
    ("io", _io),
    ("client", _client),
    ("serve", _serve),
    ("swarm", _swarm),
    ("publish", _publish),
    ("mount", _mount),
    ("load", _loaded),
    ("estimate", _estimate),
)
TARGETS: Final[tuple[tuple[str, Callable[[Any], list[tuple[str, str, str, bool]]]], ...]] = (
    ("warm", _warm_rows),
    ("serve", lambda runs: [serve.target(runs)]),
    ("swarm", swarm.targets),
    ("estimate", estimate.targets),
    ("autoscale", autoscaling.targets),
    ("publish", lambda runs: [publish.target(runs)]),
    ("mount", mount.targets),
    ("load", load.targets),
)
