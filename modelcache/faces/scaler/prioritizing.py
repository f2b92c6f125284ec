"""kube-scheduler's extender: which nodes a pod's models would be ready on soonest.

    POST /prioritize  {"Pod": …, "NodeNames": […]}  →  [{"Host": "n1", "Score": 0…10}, …]

A score falls with the predicted time: round(10 · e^(-s / 60)), so that a minute is worth four of
ten, five minutes nothing. What a node says itself counts; one that says nothing has all to fetch.
It never filters: where no node has a model, one must begin. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.faces.controller.view import Held, NodeView
from modelcache.faces.kubernetes.pods import models_of, refs_in_volumes

SCORE_MAX: Final = 10  # of the extender's protocol
SCALE_S: Final = 60.0
COLD_S: Final = 600.0
"""What a node that predicts nothing would take for a whole model: a score of zero either way."""
NODES_MAX: Final = 15_000
BODY_BYTES_MAX: Final = 16 << 20  # 15,000 names, or fewer whole nodes


def prioritized(body: bytes, views: Mapping[str, NodeView]) -> list[dict[str, Any]]:
    """The answer. Raises UsageError where the body is no question of a scheduler's."""
    pod, nodes = _asked(body)
    wanted = _wanted(pod)
    return [
        {"Host": node, "Score": _score(wanted, views.get(node)) if wanted else 0} for node in nodes
    ]


def _asked(body: bytes) -> tuple[Mapping[str, Any], list[str]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("Pod"), dict):
        raise UsageError("the body has no Pod")
    names = found.get("NodeNames")
    if names is None:
        items = (found.get("Nodes") or {}).get("items") or []
        names = [(item.get("metadata") or {}).get("name") for item in items]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError("the body has no NodeNames")
    if len(names) > NODES_MAX:
        raise UsageError(f"a question has at most {NODES_MAX} nodes")
    return found["Pod"], names


def _wanted(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the models of a pod; a pod that says them wrongly has none."""
    try:
        annotations = (pod.get("metadata") or {}).get("annotations") or {}
        volumes = (pod.get("spec") or {}).get("volumes") or ()
        refs = [*models_of(annotations).refs, *refs_in_volumes(volumes)]
        return tuple(dict.fromkeys(wanted_id(ref) for ref in refs))
    except (UsageError, AttributeError, TypeError):
        return ()


def _score(wanted: Sequence[str], view: NodeView | None) -> int:
    held = view.by_wanted if view is not None else {}
    slowest_s = max(_seconds(held.get(each)) for each in wanted)
    return round(SCORE_MAX * math.exp(-slowest_s / SCALE_S))


def _seconds(held: Held | None) -> float:
    if held is None:
        return COLD_S
    if held.ready is not None:
        return max(0.0, held.ready.p50_s)
    return COLD_S * (100 - min(100, max(0, held.percent))) / 100
