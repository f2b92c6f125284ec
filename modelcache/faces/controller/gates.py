"""Pods that wait for weights to be somewhere: when their scheduling gate is lifted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from modelcache.config import parse_duration
from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.faces.controller.view import NodeView
from modelcache.faces.kubernetes.names import GATE_TIMEOUT
from modelcache.faces.kubernetes.pods import models_of

WAIT_DEFAULT_S: Final = 600.0


def wanted_by(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Wanted ids of what a pod asks for by annotation; none where that cannot be read."""
    try:
        return tuple(wanted_id(ref) for ref in models_of(annotations).refs)
    except UsageError:
        return ()


def is_lifted(
    wanted: Sequence[str],
    annotations: Mapping[str, str],
    views: Sequence[NodeView],
    *,
    age_s: float,
) -> str | None:
    """Why a pod need not wait any longer; None while it must."""
    if not wanted:
        return "it asks for no model that can be waited for"
    for view in views:
        if view.warm_refs().issuperset(wanted):
            return f"node {view.name} is warm"
    limit_s = wait_limit_s(annotations)
    if age_s >= limit_s:
        return f"no node is warm after {limit_s:.0f} s"
    return None


def wait_limit_s(annotations: Mapping[str, str]) -> float:
    """How long a pod waits at most; one that says it wrongly does not wait for longer."""
    try:
        return parse_duration(annotations[GATE_TIMEOUT])
    except (KeyError, UsageError):
        return WAIT_DEFAULT_S
