"""The simulator's tables and plots, from the numbers kept of its studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

GB: Final = 1e9
MIB: Final = 1 << 20
SWARM: Final = "swarm"
TITLES: Final = {
    "scale": "More and more nodes: 140 GB each, origin 500 Gbit/s, nodes 25 Gbit/s",
    "regimes": "64 nodes, an origin that is slow and one that is fast",
    "failures": "64 nodes, origin 25 Gbit/s, and what goes wrong",
    "scale-out": "Nodes that come when others have the model, origin 10 Gbit/s",
}
_ABOUT: Final = """## The swarm, simulated

`python -m bench simulate`: the production planner on every node, in virtual time over a fluid
network, every connection to the origin at most 0.4 Gbit/s. {commits}; a commit and a seed
repeat a run exactly.

The *bound* is max(S/C, S/b, N*S/(C+U)); *with cells* is the same where each cell of at most 64
nodes reads the origin for itself. Chunks are larger than the 16 MiB of production where there are
many nodes, which lengthens the beginning and the end of a run. In brackets: when those are ready
that are not slow themselves; ratios are of that.
"""
Run = Mapping[str, Any]
Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]


def tables(numbers: Mapping[str, Any], table: Table) -> str:
    """All of them, as a part of RESULTS.md."""
    runs = numbers["runs"]
    parts = [_ABOUT.format(commits=_commits(runs))]
    for study, title in TITLES.items():
        chosen = [run for run in runs if run["study"] == study]
        if chosen:
            rows = [_row(run) for run in chosen]
            picture = "" if study == "scale-out" else f"\n\n![{study}](simulate-{study}.png)"
            parts.append(f"### {title}{picture}\n\n" + table(_HEADER, rows))
    return "\n".join(parts)


def _commits(runs: Sequence[Run]) -> str:
    """Which code the runs are of; where it is not the same of all, of how many nodes each is."""
    sizes: dict[str, set[int]] = {}
    for run in runs:
        sizes.setdefault(run["commit"], set()).add(run["nodes"])
    if len(sizes) == 1:
        return f"Commit {runs[0]['commit']}"
    told = (f"{commit} ({min(of)} to {max(of)} nodes)" for commit, of in sizes.items())
    return f"Commits {', '.join(told)}"


_HEADER: Final = (
    "case",
    "way",
    "last ready s",
    "x bound",
    "x with cells",
    "cells",
    "origin, models",
    "sent GB, 10 / 50 / 90 %",
    "hedges",
    "left alone",
    "chunk MiB",
)


def _row(run: Run) -> list[str]:
    last_s = run["last_s"]
    quick_s = run["last_quick_s"]
    said = f"{last_s:.0f}" if last_s == quick_s else f"{last_s:.0f} ({quick_s:.0f})"
    sent = run["sent"]
    step = (len(sent) - 1) / 100
    spread = " / ".join(f"{sent[round(step * percent)] / GB:.0f}" for percent in (10, 50, 90))
    name = f"**{run['way']}**" if run["way"] == SWARM else run["way"]
    return [
        run["label"],
        name,
        said,
        f"{quick_s / run['bound_s']:.2f}",
        f"{quick_s / run['cells_bound_s']:.2f}",
        f"{run['cells']}" if run["way"] == SWARM else "",
        f"{run['origin_bytes'] / run['size_bytes']:.2f}",
        spread,
        f"{run['hedges']:,}",
        f"{run['quarantines']:,}",
        f"{run['chunk_bytes'] // MIB}",
    ]


def plots(numbers: Mapping[str, Any], folder: Path) -> None:
    """Draw them where matplotlib is installed."""
    try:
        from bench.simulate_plot import draw  # noqa: PLC0415 - only in the bench packages
    except ImportError:
        return
    draw(numbers["runs"], folder)
