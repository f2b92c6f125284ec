"""What agents have told, as decisions need it: which node has how much of which model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelcache.domain.wanted import ModelPhase
from modelcache.faces.kubernetes.objects import seconds_of
from modelcache.forecast.slots import Ready

WARM: Final = 100
SILENT_S: Final = 180.0  # an agent tells something every minute


@dataclass(frozen=True, slots=True)
class Held:
    """One model on one node."""

    wanted_id: str
    ref: str
    model_id: str
    percent: int
    phase: str
    message: str
    holders: int
    total_bytes: int = 0
    missing_bytes: int = 0
    ready: Ready | None = None

    @property
    def warm(self) -> bool:
        """Whether all of it is there."""
        return self.percent >= WARM


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node's agent. models: the most urgent first."""

    name: str
    models: tuple[Held, ...] = ()
    ready: bool = False
    reasons: tuple[str, ...] = ()
    told_s: float = 0.0
    by_wanted: Mapping[str, Held] = field(default_factory=dict)

    def silent(self, now_s: float) -> bool:
        """Whether it has said nothing for so long that it cannot be believed to be there."""
        return now_s - self.told_s > SILENT_S

    def warm_refs(self) -> frozenset[str]:
        """Wanted ids of which all bytes are there."""
        return frozenset(each.wanted_id for each in self.models if each.warm and each.wanted_id)


def view_of(item: Mapping[str, Any]) -> NodeView:
    """Read a `NodeModels`. Whatever is not there counts as nothing."""
    status = item.get("status") or {}
    agent = status.get("agent") or {}
    try:
        told_s = seconds_of(status.get("updatedAt") or "")
    except ValueError:
        told_s = 0.0
    models = tuple(_held(model) for model in status.get("models") or ())
    return NodeView(
        name=str(item["metadata"]["name"]),
        models=models,
        ready=bool(agent.get("ready")),
        reasons=tuple(map(str, agent.get("reasons") or ())),
        told_s=told_s,
        by_wanted={model.wanted_id: model for model in models if model.wanted_id},
    )


def views_of(items: Iterable[Mapping[str, Any]]) -> dict[str, NodeView]:
    """By node."""
    views = map(view_of, items)
    return {view.name: view for view in views}


def _held(model: Mapping[str, Any]) -> Held:
    total, done = int(model.get("totalBytes") or 0), int(model.get("doneBytes") or 0)
    missing = model.get("missingBytes")
    return Held(
        wanted_id=str(model.get("wantedId") or ""),
        ref=str(model.get("ref") or ""),
        model_id=str(model.get("modelId") or ""),
        percent=int(model.get("percent") or 0),
        phase=str(model.get("phase") or ModelPhase.QUEUED.value),
        message=str(model.get("message") or ""),
        holders=int(model.get("holders") or 0),
        total_bytes=total,
        missing_bytes=max(0, total - done if missing is None else int(missing)),
        ready=_ready(model.get("ready")),
    )


def _ready(told: Mapping[str, Any] | None) -> Ready | None:
    """What the agent predicts, where it does."""
    if not told or "p50Seconds" not in told or "p90Seconds" not in told:
        return None
    return Ready(float(told["p50Seconds"]), float(told["p90Seconds"]), bool(told.get("confident")))
