"""The simulator's plots: time and traffic over the number of nodes, regimes, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt

Run = Mapping[str, Any]
COLORS: Final = {
    "swarm": "#0b6e4f",
    "alone": "#c44536",
    "single seed": "#9aa5b1",
    "random": "#d9a441",
}
BOUND: Final = "#333333"


def draw(runs: Sequence[Run], folder: Path) -> None:
    """One picture for each study."""
    mpl.use("Agg")
    for study, picture in (("scale", _scale), ("regimes", _regimes), ("failures", _failures)):
        chosen = [run for run in runs if run["study"] == study]
        if chosen:
            figure = picture(chosen)
            figure.tight_layout()
            figure.savefig(folder / f"simulate-{study}.png", dpi=110)
            plt.close(figure)


def _scale(runs: Sequence[Run]) -> Any:  # noqa: ANN401 - matplotlib's Figure
    figure, (times, reads, sends) = plt.subplots(1, 3, figsize=(13, 4))
    swarm = [run for run in runs if run["way"] == "swarm"]
    nodes = [run["nodes"] for run in swarm]
    for way, color in COLORS.items():
        chosen = [run for run in runs if run["way"] == way]
        at = [run["nodes"] for run in chosen]
        times.plot(at, [run["last_s"] for run in chosen], "o-", color=color, label=way)
        models = [run["origin_bytes"] / run["size_bytes"] for run in chosen]
        reads.plot(at, models, "o-", color=color, label=way)
    times.plot(nodes, [r["alone_s"] for r in swarm], ":", color=COLORS["alone"])
    times.plot(nodes, [r["bound_s"] for r in swarm], "--", color=BOUND, label="bound")
    times.plot(nodes, [r["cells_bound_s"] for r in swarm], ":", color=BOUND, label="with cells")
    reads.plot(nodes, [run["cells"] for run in swarm], ":", color=BOUND, label="cells")
    for panel, title in ((times, "last node ready, s"), (reads, "read from the origin, models")):
        panel.set(xscale="log", yscale="log", xlabel="nodes", title=title)
        panel.legend(fontsize=8)
    for run in swarm:
        percents = [100 * place / (len(run["sent"]) - 1) for place in range(len(run["sent"]))]
        models = [sent / run["size_bytes"] for sent in run["sent"]]
        sends.plot(percents, models, label=f"{run['nodes']} nodes")
    sends.set(xlabel="percent of nodes", title="sent by each node, models", ylim=(0, None))
    sends.legend(fontsize=8)
    return figure


def _regimes(runs: Sequence[Run]) -> Any:  # noqa: ANN401 - matplotlib's Figure
    labels = list(dict.fromkeys(run["label"] for run in runs))
    figure, panels = plt.subplots(1, len(labels), figsize=(4.2 * len(labels), 3), squeeze=False)
    for panel, label in zip(panels.flat, labels, strict=True):
        chosen = [run for run in runs if run["label"] == label]
        ways = [run["way"] for run in chosen]
        bars = panel.barh(
            ways, [run["last_s"] for run in chosen], color=[COLORS[way] for way in ways]
        )
        panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        panel.axvline(chosen[0]["bound_s"], color=BOUND, linestyle="--", linewidth=1)
        panel.set_title(label, fontsize=9)
        panel.set(xscale="log", xlabel="last node ready, s (dashed: bound)")
        panel.margins(x=0.2)
    return figure


def _failures(runs: Sequence[Run]) -> Any:  # noqa: ANN401 - matplotlib's Figure
    figure, panel = plt.subplots(figsize=(8, 4.5))
    for run in runs:
        took = run["took_s"]
        percents = [100 * place / (len(took) - 1) for place in range(len(took))]
        panel.plot(took, percents, label=run["label"])
    panel.axvline(runs[0]["bound_s"], color=BOUND, linestyle="--", linewidth=1)
    panel.set(
        xscale="log", xlabel="from its start until a node is ready, s", ylabel="percent of nodes"
    )
    panel.legend(fontsize=8)
    return figure
