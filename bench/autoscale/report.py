"""Tables and a plot of the autoscaling study, from the numbers kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from bench.autoscale.study import REQUESTS, SEEDS, WAYS
from bench.autoscale.traffic import SHAPES
from bench.autoscale.world import CARRIES, OBJECTIVE_S, Times

Run = Mapping[str, Any]
Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
PICTURE: Final = "autoscale.png"
COLORS: Final = ("#c44536", "#d9a441", "#9aa5b1", "#0b6e4f", "#4f6d9a")
P99_MS: Final = 100.0
AGE_S: Final = 1.0


def tables(runs: Sequence[Run], table: Table) -> str:
    """All of them, as a part of RESULTS.md."""
    times = Times()
    about = (
        "## Autoscaling, simulated\n\n"
        "`python -m bench autoscale`: a day of requests in shapes of published traces "
        "(`bench/autoscale/traffic.py` cites them), each day with "
        f"{len(SEEDS)} seeds ({', '.join(map(str, SEEDS))}); means of these. A replica "
        f"carries {CARRIES:.0f} requests a second and starts in {times.warm_s:.0f} s on a warm "
        f"node, in {times.node_s + times.cold_s:.0f} s on a new one. Late is what waited for "
        f"over {OBJECTIVE_S:.0f} s; an episode of it ends when nobody waits so long. Node-hours "
        "are those of replicas and of nodes that are kept warm with none.\n"
    )
    errors = (
        "How far off may lead times be? Ours, with all lead times that are believed multiplied by "
        f"a factor, or spread (seeds {', '.join(map(str, SEEDS[:2]))}).\n"
    )
    external = (
        "External metrics with a real API server and 1,000 ModelScales, four connections at once:\n"
    )
    picture = f"![replicas]({PICTURE})\n"
    ways, wrong, answered = _ways(runs, table), _errors(runs, table), _answers(runs, table)
    parts = [about, ways, picture, errors, wrong]
    if any(run.get("what") == "answers" for run in runs):
        parts += [external, answered]
    return "\n".join(parts)


def targets(runs: Sequence[Run]) -> list[tuple[str, str, str, bool]]:
    """What was promised, and what came of it."""
    rows: list[tuple[str, str, str, bool]] = []
    for run in (run for run in runs if run.get("what") == "answers"):
        said, series = run["p99_ms"], f"{run['series']:,} external metrics"
        what = f"{series}, p99, from {run['where']}"
        rows.append((what, f"{P99_MS:.0f} ms", f"{said:.0f} ms", said < P99_MS))
    for run in (run for run in runs if run.get("what") == "age"):
        said = run["max_s"]
        rows.append(("age of an external metric", "1 s", f"{said:.2f} s", said <= AGE_S))
    return rows


def plot(runs: Sequence[Run], folder: Path) -> None:
    """Replicas over the day, where matplotlib is installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only in the bench packages
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        return
    mpl.use("Agg")
    figure, panels = plt.subplots(len(SHAPES), 1, figsize=(10, 3 * len(SHAPES)), sharex=True)
    for panel, shape in zip(panels, SHAPES, strict=True):
        for color, way in zip(COLORS, WAYS, strict=True):
            chosen = [run for run in _of(runs, "ways", shape, way) if "replicas" in run]
            if chosen:
                hours = [index / 12 for index in range(len(chosen[0]["replicas"]))]
                panel.plot(hours, chosen[0]["replicas"], color=color, label=way, linewidth=1)
        panel.set(title=shape, ylabel="replicas")
    panels[0].legend(fontsize=7)
    panels[-1].set(xlabel="hour")
    figure.tight_layout()
    figure.savefig(folder / PICTURE, dpi=110)
    plt.close(figure)


def _ways(runs: Sequence[Run], table: Table) -> str:
    header = [
        *("requests", "scaling", "late", "replica-hours", "node-hours", "cold starts"),
        *("most replicas", "late episodes", "recovered, 9 of 10"),
    ]
    rows = []
    for shape in SHAPES:
        before = _of(runs, "ways", shape, REQUESTS)
        for way in WAYS:
            chosen = _of(runs, "ways", shape, way)
            if chosen:
                rows.append([shape, way, *_cells(chosen, before)])
    return table(header, rows)


def _cells(chosen: Sequence[Run], before: Sequence[Run]) -> list[str]:
    def ratio(name: str) -> str:
        said, base = _mean(chosen, name), _mean(before, name)
        return f" ({said / base:.2f}x)" if base else ""

    return [
        f"{_mean(chosen, 'late_share'):.2%}{ratio('late')}",
        f"{_mean(chosen, 'replica_h'):.0f}{ratio('replica_h')}",
        f"{_mean(chosen, 'node_h'):.0f}{ratio('node_h')}",
        f"{_mean(chosen, 'cold_starts'):.0f}",
        f"{_mean(chosen, 'most_replicas'):.0f}",
        f"{_mean(chosen, 'episodes'):.0f}",
        f"{_mean(chosen, 'recover_p90_s'):.0f} s",
    ]


def _errors(runs: Sequence[Run], table: Table) -> str:
    names = list(dict.fromkeys(run["way"] for run in runs if run.get("study") == "errors"))
    header = ["believed", *(f"{shape}: late, replica-h, node-h" for shape in SHAPES)]
    rows = []
    for name in names:
        cells = []
        for shape in SHAPES:
            chosen = _of(runs, "errors", shape, name)
            late, hours = _mean(chosen, "late_share"), _mean(chosen, "replica_h")
            cells.append(f"{late:.2%}, {hours:.0f}, {_mean(chosen, 'node_h'):.0f}")
        rows.append([name, *cells])
    return table(header, rows)


def _answers(runs: Sequence[Run], table: Table) -> str:
    rows = [
        [
            f"from {run['where']}",
            f"{run['p50_ms']:.1f} ms",
            f"{run['p99_ms']:.1f} ms",
            f"{run['max_ms']:.1f} ms",
        ]
        for run in runs
        if run.get("what") == "answers"
    ]
    rows += [
        [
            "a changed report until it is answered",
            f"{run['p50_s']:.2f} s",
            "",
            f"{run['max_s']:.2f} s",
        ]
        for run in runs
        if run.get("what") == "age"
    ]
    return table(["", "median", "p99", "most"], rows)


def _of(runs: Sequence[Run], study: str, shape: str, way: str) -> list[Run]:
    wanted = (study, shape, way)
    return [run for run in runs if (run.get("study"), run.get("shape"), run.get("way")) == wanted]


def _mean(runs: Sequence[Run], name: str) -> float:
    return mean(float(run[name]) for run in runs) if runs else 0.0
