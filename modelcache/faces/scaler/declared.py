"""`ModelScale` objects as values. What their schema cannot refuse is refused here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.forecast.outlook import Asked
from modelcache.forecast.recommend import Costs

GPU_RESOURCE: Final = "nvidia.com/gpu"
INTERVAL_S: Final = 5
DELAY_S: Final = 30.0
WARM_S: Final = 60.0
COLD_S: Final = 600.0
_MODEL_ID: Final = re.compile(r"[0-9a-f]{64}")

Key = tuple[str, str]
"""Namespace and name of a ModelScale."""


@dataclass(frozen=True, slots=True)
class FromPods:
    """Samples of pods' metrics, added up. selector: of the pods; counter: whose rate is meant.

    waiting: a gauge of requests that wait; empty where there is none.
    """

    selector: Mapping[str, str]
    port: int
    path: str
    metric: str
    labels: Mapping[str, str]
    counter: bool
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class FromPrometheus:
    """What a query gives: one number. waiting: another, of requests that wait; or empty."""

    query: str
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """One object. wanted, model_id: what its model is called in reports; one of them is empty.

    buffer: a CapacityBuffer of its namespace; empty for none.
    """

    key: Key
    uid: str
    generation: int
    model: str
    wanted: str
    model_id: str
    selector: Mapping[str, str]
    gpu_resource: str
    asked: Asked
    source: FromPods | FromPrometheus | None
    interval_s: int
    buffer: str = ""

    @property
    def slot_key(self) -> str:
        """Under which places hold its model."""
        return "/".join(self.key)


def scale_of(item: Mapping[str, Any]) -> Scale:
    """Read a `ModelScale`. Raises UsageError, saying what to change."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    replica = spec.get("replica") or {}
    costs, ready = spec.get("costs") or {}, spec.get("readySeconds") or {}
    demand = spec.get("demand") or {}
    selector = dict(spec.get("selector") or {})
    if not selector:
        raise UsageError("selector: it takes at least one label to tell the server's pods")
    model = str(spec.get("model") or "")
    is_id = _MODEL_ID.fullmatch(model) is not None
    asked = Asked(
        gpus=int(replica.get("gpus") or 1),
        per_replica=_above_zero("replica.requestsPerSecond", replica.get("requestsPerSecond")),
        costs=Costs(
            _above_zero("costs.late", costs.get("late", 9)),
            _above_zero("costs.idle", costs.get("idle", 1)),
        ),
        delay_s=float(spec.get("delaySeconds", DELAY_S)),
        warm_s=float(ready.get("warm", WARM_S)),
        cold_s=float(ready.get("cold", COLD_S)),
        scale_up=int(spec.get("scaleUpReplicas") or 1),
    )
    return Scale(
        key=(_text(metadata, "namespace"), _text(metadata, "name")),
        uid=_text(metadata, "uid"),
        generation=generation_of(item),
        model=model,
        wanted="" if is_id else _wanted(model, spec),
        model_id=model if is_id else "",
        selector=selector,
        gpu_resource=str(replica.get("gpuResource") or GPU_RESOURCE),
        asked=asked,
        source=_source(demand, selector),
        interval_s=max(1, int(demand.get("intervalSeconds") or INTERVAL_S)),
        buffer=str(spec.get("capacityBuffer") or ""),
    )


def key_of(item: Mapping[str, Any]) -> Key:
    """Which one it is."""
    return _text(item["metadata"], "namespace"), _text(item["metadata"], "name")


def generation_of(item: Mapping[str, Any]) -> int:
    """Of its spec."""
    return int(_of(item["metadata"], "generation") or 0)


def _wanted(model: str, spec: Mapping[str, Any]) -> str:
    try:
        ref = parse_ref(model).filtered(spec.get("include") or [], spec.get("exclude") or [])
    except UsageError as error:
        raise UsageError(f"model: {error.message}") from error
    return wanted_id(ref)


def _source(
    demand: Mapping[str, Any], selector: Mapping[str, str]
) -> FromPods | FromPrometheus | None:
    pods, prometheus = demand.get("pods"), demand.get("prometheus")
    if prometheus:
        return FromPrometheus(
            str(prometheus.get("query") or ""), str(prometheus.get("waitingQuery") or "")
        )
    if not pods:
        return None
    return FromPods(
        selector=dict(pods.get("selector") or selector),
        port=int(pods["port"]),
        path=str(pods.get("path") or "/metrics"),
        metric=str(pods["metric"]),
        labels=dict(pods.get("labels") or {}),
        counter=pods.get("type", "counter") == "counter",
        waiting=str(pods.get("waitingMetric") or ""),
    )


def _above_zero(name: str, value: Any) -> float:  # noqa: ANN401 - as JSON has it
    number = float(value) if isinstance(value, int | float) else math.nan
    if not (number > 0 and math.isfinite(number)):
        raise UsageError(f"{name} is a number above 0")
    return number


def _text(metadata: Any, name: str) -> str:  # noqa: ANN401
    return str(_of(metadata, name) or "")


def _of(metadata: Any, name: str) -> Any:  # noqa: ANN401
    """Of an object's metadata: attributes where a client has read it, keys in plain JSON."""
    return metadata.get(name) if isinstance(metadata, Mapping) else getattr(metadata, name, None)
