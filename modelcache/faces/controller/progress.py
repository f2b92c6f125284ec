"""The status of a `ModelPrefetch`: which nodes are meant, how far each is, who may go on. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelcache.domain.wanted import ModelPhase, wanted_id
from modelcache.faces.controller.view import NodeView
from modelcache.faces.watcher.prefetches import Declared

PER_NODE_MAX: Final = 200
MESSAGE_MAX: Final = 300
_ORDER: Final = {"Failed": 0, "Warming": 1, "Waiting": 2, "Warm": 3}


def status_of(
    declared: Declared,
    *,
    generation: int,
    before: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, str]],
    views: Mapping[str, NodeView],
    now: str,
) -> dict[str, Any]:
    """The new status. before: the present one. nodes: labels by name. now: as objects hold it."""
    wanted = [wanted_id(ref) for ref in declared.refs]
    meant = sorted(name for name, labels in nodes.items() if declared.selects(labels) and wanted)
    rows = [_row(name, wanted, views.get(name)) for name in meant if name in views]
    counts = {phase: sum(row["phase"] == phase for row in rows) for phase in _ORDER}
    rows.sort(key=lambda row: (_ORDER[row["phase"]], row["node"]))
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "nodes": len(rows),
        "warm": counts["Warm"],
        "warming": counts["Warming"],
        "failed": counts["Failed"],
        "perNode": rows[:PER_NODE_MAX],
        "admitted": _admitted(declared, rows),
        "conditions": [_told(_ready(declared, counts, len(rows), generation), declared)],
    }
    _keep_time(status["conditions"][0], before, now)
    return status


def refused(generation: int, message: str, before: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The status of one that cannot be."""
    condition = _condition("False", "Refused", message, generation)
    _keep_time(condition, before, now)
    return {
        "observedGeneration": generation,
        "nodes": 0,
        "warm": 0,
        "warming": 0,
        "failed": 0,
        "perNode": [],
        "admitted": [],
        "conditions": [condition],
    }


def _row(name: str, wanted: Sequence[str], view: NodeView | None) -> dict[str, Any]:
    held = [view.by_wanted.get(each) for each in wanted] if view is not None else []
    percents = [0 if each is None else min(100, each.percent) for each in held]
    percent = sum(percents) // max(1, len(wanted))
    failed = next((e for e in held if e is not None and e.phase == ModelPhase.FAILED), None)
    if held and all(each is not None and each.warm for each in held):
        phase, message = "Warm", ""
    elif failed is not None:
        phase, message = "Failed", failed.message
    elif any(each is not None for each in held):
        moving = next((each for each in held if each is not None and not each.warm), None)
        phase, message = "Warming", moving.message if moving is not None else ""
    else:
        phase, message = "Waiting", ""
    return {"node": name, "phase": phase, "percent": percent, "message": message[:MESSAGE_MAX]}


def _admitted(declared: Declared, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who may fetch: the warm keep what they have, and `parallelism` others go on, in order.

    One that fetches is not sent back while it is meant at all.
    """
    if not declared.parallelism:
        return []
    warm = [row["node"] for row in rows if row["phase"] == "Warm"]
    others = [row["node"] for row in rows if row["phase"] != "Warm"]
    going = [name for name in others if name in declared.admitted][: declared.parallelism]
    waiting = sorted(name for name in others if name not in going)
    return sorted([*warm, *going, *waiting[: declared.parallelism - len(going)]])


def _ready(
    declared: Declared, counts: Mapping[str, int], nodes: int, generation: int
) -> dict[str, Any]:
    if not declared.refs:
        return _condition("True", "NothingToFetch", "there are only claims", generation)
    if declared.suspended:
        return _condition("False", "Suspended", "nothing is wanted while it is", generation)
    if not nodes:
        return _condition("False", "NoNodes", "no node with an agent has these labels", generation)
    if counts["Warm"] == nodes:
        return _condition("True", "Warm", f"warm on all {nodes} nodes", generation)
    if counts["Failed"]:
        message = f"{counts['Failed']} of {nodes} nodes cannot have it; perNode says why"
        return _condition("False", "Failed", message, generation)
    message = f"warm on {counts['Warm']} of {nodes} nodes"
    return _condition("False", "Warming", message, generation)


def _told(condition: dict[str, Any], declared: Declared) -> dict[str, Any]:
    """With a word on what is ignored."""
    if not declared.ignored:
        return condition
    ignored = ", ".join(declared.ignored)[:MESSAGE_MAX]
    note = f"ignored, as claims are mounted as they are: {ignored}"
    return {**condition, "message": f"{condition['message']}; {note}"}


def _condition(status: str, reason: str, message: str, generation: int) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
    }


def _keep_time(condition: dict[str, Any], before: Mapping[str, Any], now: str) -> None:
    """When the condition's status became what it is."""
    conditions: Sequence[Mapping[str, Any]] = before.get("conditions") or ()
    old: Mapping[str, Any] = next((c for c in conditions if c.get("type") == "Ready"), {})
    same = old.get("status") == condition["status"]
    condition["lastTransitionTime"] = old.get("lastTransitionTime", now) if same else now
