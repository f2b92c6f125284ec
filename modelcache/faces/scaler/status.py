"""The status of a `ModelScale`, from its outlook. Pure.

Numbers that move all the time are rounded, so that a status is written when somebody would notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelcache.faces.scaler.declared import Scale
from modelcache.forecast.outlook import Lead, Outlook
from modelcache.forecast.slots import Ready

_KNOWN: Final = (
    "modelId",
    "requestsPerSecond",
    "readyReplicas",
    "startingReplicas",
    "recommendedReplicas",
    "hotSpares",
    "warmNodes",
    "warmSlots",
    "warmSlotsShared",
    "warmSlotsWanted",
    "missingBytes",
    "ready",
    "weightsReady",
    "abandonedStarts",
    "scaleUp",
    "behavior",
)


def status_of(
    scale: Scale,
    found: Outlook,
    *,
    model_id: str,
    shared_slots: int,
    problem: str,
    before: Mapping[str, Any],
    now: str,
) -> dict[str, Any]:
    """What is to be written but for the time. problem: why no demand is known. now: RFC 3339."""
    status: dict[str, Any] = {
        "observedGeneration": scale.generation,
        "modelId": model_id,
        "readyReplicas": found.ready,
        "startingReplicas": found.starting,
        "warmNodes": found.warm_nodes,
        "warmSlots": found.warm_slots,
        "warmSlotsShared": shared_slots,
        "missingBytes": found.missing_bytes,
        "ready": {"warm": _lead(found.warm), "cold": _lead(found.cold)},
        "abandonedStarts": found.abandoned,
        "scaleUp": {
            "replicas": scale.asked.scale_up,
            "originBytes": found.scale_up.origin_bytes,
        },
        "behavior": {
            "scaleUpPeriodSeconds": found.scale_up_period_s,
            "scaleDownStabilizationSeconds": found.stabilization_s,
        },
        # A merge patch takes away what is null.
        "requestsPerSecond": None if found.rate is None else _rounded(found.rate),
        "recommendedReplicas": found.recommended,
        "hotSpares": found.spares,
        "warmSlotsWanted": found.slots_wanted,
        "weightsReady": None if found.weights is None else _weights(found.weights),
        "conditions": [_known(scale, found, problem, before, now)],
    }
    if found.scale_up.seconds is not None:
        status["scaleUp"]["seconds"] = _rounded(found.scale_up.seconds)
    return status


def refused(generation: int, message: str, before: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The status of one that cannot be: nothing that was once known stays."""
    condition = _condition("False", "Refused", message, generation)
    return {
        **dict.fromkeys(_KNOWN),
        "observedGeneration": generation,
        "conditions": [_timed(condition, before, now)],
    }


def differs(status: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a patch with this status would change anything."""
    return any(before.get(name) != value for name, value in status.items())


def _known(
    scale: Scale, found: Outlook, problem: str, before: Mapping[str, Any], now: str
) -> dict[str, Any]:
    if found.recommended is None:
        condition = _condition(
            "False", "DemandUnknown", problem or "demand is not known", scale.generation
        )
    else:
        condition = _condition("True", "Known", "", scale.generation)
    return _timed(condition, before, now)


def _condition(status: str, reason: str, message: str, generation: int) -> dict[str, Any]:
    return {
        "type": "Known",
        "status": status,
        "reason": reason,
        "message": message[:300],
        "observedGeneration": generation,
    }


def _timed(condition: dict[str, Any], before: Mapping[str, Any], now: str) -> dict[str, Any]:
    conditions: Sequence[Mapping[str, Any]] = before.get("conditions") or ()
    old: Mapping[str, Any] = next((c for c in conditions if c.get("type") == "Known"), {})
    same = old.get("status") == condition["status"]
    return {**condition, "lastTransitionTime": old.get("lastTransitionTime", now) if same else now}


def _lead(lead: Lead) -> dict[str, Any]:
    return {
        "p50Seconds": _rounded(lead.p50_s),
        "p90Seconds": _rounded(lead.p90_s),
        "confident": lead.confident,
        "from": lead.known,
        "starts": lead.starts,
    }


def _weights(ready: Ready) -> dict[str, Any]:
    return {
        "p50Seconds": _rounded(ready.p50_s),
        "p90Seconds": _rounded(ready.p90_s),
        "confident": ready.confident,
    }


def _rounded(value: float) -> float:
    """Two digits that count."""
    return float(f"{value:.2g}")
