"""When a model would be ready, as an agent's answer tells it, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelcache.errors import CorruptData
from modelcache.faces import present, units


def estimates_text(told: Mapping[str, Any]) -> str:
    """A table of nodes, and a line on how far it can be trusted. Raises CorruptData."""
    try:
        rows = [_row(each) for each in told["estimates"]]
        score = _score(told["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(
            "an agent's estimate cannot be read; is it of another version?"
        ) from error
    head = ["", "NODE", "TIER", "MISSING", "P50", "P90", "LOADED P50", "LOADED P90", "BASIS"]
    return f"{present.table(head, rows)}\n{score}"


def _row(estimate: Mapping[str, Any]) -> list[str]:
    return [
        str(estimate["which"]),
        str(estimate["node"]),
        str(estimate["tier"]),
        units.size(estimate["missing_bytes"]),
        *(_seconds(estimate[name]) for name in ("p50_s", "p90_s", "loaded_p50_s", "loaded_p90_s")),
        str(estimate["basis"]) + ("" if estimate["confident"] else ", not confident"),
    ]


def _score(score: Mapping[str, Any]) -> str:
    if not score["starts"]:
        return "no start was predicted on this node yet"
    parts = [units.count(int(score["starts"]), "start")]
    if score["median_error"] is not None:
        parts.append(f"median error {score['median_error']:.0%}")
    if score["p90_coverage"] is not None:
        parts.append(f"p90 held {score['p90_coverage']:.0%} of the time")
    parts.append(f"{score['abandoned']} given up")
    return "predictions of this node so far: " + ", ".join(parts)


def _seconds(value: float | None) -> str:
    return "-" if value is None else units.duration(float(value))
