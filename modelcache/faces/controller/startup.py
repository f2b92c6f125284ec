"""Taints of nodes that have just come, and when they are taken away. Pure.

An autoscaler's node group may taint its nodes, so that they take no pods before the models are
there that `ModelPrefetch` objects with `holdNodes` declare for them. The keys are those that
Cluster Autoscaler and Karpenter look through when they judge whether a pod would fit. The wait is
bounded: many nodes that stay tainted make Cluster Autoscaler believe that its cluster is unhealthy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from modelcache.domain.wanted import wanted_id
from modelcache.faces.controller.view import NodeView
from modelcache.faces.watcher.prefetches import Declared

TAINTS: Final = frozenset(
    {
        "startup-taint.cluster-autoscaler.kubernetes.io/modelcache",
        "modelcache.io/starting",  # as Karpenter's startupTaints may be called anything
    }
)
NO_AGENT_S: Final = 900.0
"""How long a node waits whose agent does not come up: pods can run there without one."""


def held_by(taints: Iterable[str]) -> bool:
    """Whether any of a node's taints, by their keys, is ours to take away."""
    return any(key in TAINTS for key in taints)


def is_free(
    view: NodeView | None,
    labels: Mapping[str, str],
    declared: Sequence[Declared],
    *,
    age_s: float,
    now_s: float,
) -> str | None:
    """Why a node need not wait any longer; None while it must. age_s: since the node came."""
    if view is None or not view.ready or view.silent(now_s):
        return f"no agent after {NO_AGENT_S:.0f} s" if age_s >= NO_AGENT_S else None
    holding = [each for each in declared if each.holds and each.selects(labels)]
    waiting = [each for each in holding if not each.suspended and age_s < each.hold_timeout_s]
    warm = view.warm_refs()
    for each in waiting:
        if not all(wanted_id(ref) in warm for ref in each.refs):
            return None
    late = sum(not warm.issuperset(map(wanted_id, each.refs)) for each in holding)
    return f"{late} of {len(holding)} declarations took too long" if late else "all is warm"
