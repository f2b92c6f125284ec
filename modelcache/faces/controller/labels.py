"""Labels and the condition of a node, from what its agent has told. Pure.

A label says how much of a model a node has, in quarters. There are at most `LABELS_MAX` on a node:
schedulers read all of a node's labels for every pod. Labels of ours that nothing stands for are
taken away, those of others are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelcache.faces.controller.view import NodeView
from modelcache.faces.kubernetes.names import AGENT_READY, WARM_PREFIX, warm_grade, warm_label

LABELS_MAX: Final = 64


def warm_labels(view: NodeView | None, now_s: float) -> dict[str, str]:
    """The labels that a node should have; none where its agent is silent."""
    if view is None or view.silent(now_s):
        return {}
    found: dict[str, int] = {}
    ranked = sorted(view.models, key=lambda model: (not model.holders, -model.percent))
    for model in ranked:
        if not model.model_id:
            continue
        label = warm_label(model.model_id)
        if label in found or len(found) < LABELS_MAX:
            found[label] = max(found.get(label, 0), warm_grade(model.percent))
    return {label: str(grade) for label, grade in found.items()}


def label_changes(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What to change of a node's labels; None takes one away. Only labels of ours."""
    changes: dict[str, str | None] = {
        label: value for label, value in wanted.items() if present.get(label) != value
    }
    for label in present:
        if label.startswith(WARM_PREFIX) and label not in wanted:
            changes[label] = None
    return changes


def agent_condition(view: NodeView | None, now_s: float) -> dict[str, Any] | None:
    """The node condition that says whether its agent works; None where it never had one."""
    if view is None:
        return None
    if view.silent(now_s):
        status, reason, message = "Unknown", "AgentSilent", "the agent has told nothing for a while"
    elif view.ready:
        status, reason, message = "True", "AgentReady", "the agent brings models to this node"
    else:
        why = ", ".join(view.reasons) or "it does not say why"
        status, reason, message = "False", "AgentNotReady", f"the agent is not ready: {why}"
    return {"type": AGENT_READY, "status": status, "reason": reason, "message": message}
