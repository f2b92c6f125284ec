"""The plot beside RESULTS.md: rate of every tool in every scenario, and the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.contenders import MODELCACHE
from bench.origins import Scenario, Transport

if TYPE_CHECKING:
    from bench.results import Group

COLUMNS = 2
OWN, OTHER, LIMIT = "#0b6e4f", "#9aa5b1", "#c44536"


def draw(groups: Mapping[tuple[Scenario, Transport], Group], path: Path) -> None:
    """One panel for each scenario and transport."""
    from bench.results import TITLES  # noqa: PLC0415 - it imports this module

    mpl.use("Agg")
    rows = -(-len(groups) // COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=(11, 2.5 * rows), squeeze=False)
    flat: list[Any] = list(panels.flat)
    for panel, (key, group) in zip(flat, groups.items(), strict=False):
        _panel(panel, group, TITLES[key])
    for panel in flat[len(groups) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Any, group: Group, title: str) -> None:  # noqa: ANN401 - matplotlib's Axes
    tools = [tool for tool in reversed(group.tools) if group.wall_s(tool)]
    rates = [group.size_bytes / 1e9 / (group.wall_s(tool) or 1) for tool in tools]
    colors = [OWN if tool == MODELCACHE else OTHER for tool in tools]
    bars = panel.barh(tools, rates, color=colors)
    panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    limit_s = group.limit_s()
    if limit_s:
        limit = group.size_bytes / 1e9 / limit_s
        panel.axvline(limit, color=LIMIT, linewidth=1)
        panel.text(limit, -0.45, " limit", color=LIMIT, fontsize=8, va="bottom")
    panel.set_title(f"{title}, {group.size_bytes / 1e9:.1f} GB", fontsize=9)
    panel.set_xlabel("GB/s, whole process", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.12)
