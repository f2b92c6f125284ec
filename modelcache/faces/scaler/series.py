"""What numbers there are of each scale, and under which names: one list for all who ask. Pure.

The label `model` is the name of the `ModelScale`: refs have characters that no selector can have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from modelcache.faces.scaler.declared import Scale
from modelcache.forecast.outlook import Lead, Outlook
from modelcache.forecast.recommend import lead_time_load

RECOMMENDED: Final = "modelcache_recommended_replicas"
PREDICTED: Final = "modelcache_predicted_start_seconds"
NAMES: Final[Mapping[str, str]] = {
    RECOMMENDED: "Replicas to have, by demand, lead time and the costs of late and idle.",
    "modelcache_hot_spares": "Replicas to start now, beside those that will be ready in time.",
    "modelcache_ready_replicas": "Replicas that take requests.",
    "modelcache_starting_replicas": "Replicas that are bound to a node and not ready yet.",
    "modelcache_warm_nodes": "Nodes that have every byte of the model.",
    "modelcache_warm_slots": "Replicas that would start on nodes which have the model.",
    "modelcache_warm_slots_shared": "The same, when all models' replicas take places in turn.",
    "modelcache_warm_slots_wanted": "Places to keep warm with no replica.",
    "modelcache_fetching_bytes": "What the nodes that fetch the model still lack, together.",
    "modelcache_demand": "Requests a second, or what else a replica's capacity is stated in.",
    "modelcache_lead_time_load": "Load when a replica begun now would be ready; 1 is full.",
    PREDICTED: "Seconds from a pod's binding to its being ready.",
    "modelcache_scale_up_seconds": "Seconds until scaleUpReplicas more would be ready.",
    "modelcache_scale_up_origin_bytes": "What scaleUpReplicas more would read from the origin.",
}
"""By metric: what it means."""


@dataclass(frozen=True, slots=True)
class Series:
    """One number. None: it is not known, or too old to be told."""

    metric: str
    namespace: str
    labels: Mapping[str, str]
    value: float | None


def series_of(scale: Scale, found: Outlook, shared_slots: int) -> Iterator[Series]:
    """All numbers of one scale, known or not."""
    namespace, name = scale.key
    plain: dict[str, float | None] = {
        RECOMMENDED: found.recommended,
        "modelcache_hot_spares": found.spares,
        "modelcache_ready_replicas": found.ready,
        "modelcache_starting_replicas": found.starting,
        "modelcache_warm_nodes": found.warm_nodes,
        "modelcache_warm_slots": found.warm_slots,
        "modelcache_warm_slots_shared": shared_slots,
        "modelcache_warm_slots_wanted": found.slots_wanted,
        "modelcache_fetching_bytes": found.missing_bytes,
        "modelcache_demand": found.rate,
        "modelcache_lead_time_load": _load(scale, found),
        "modelcache_scale_up_seconds": found.scale_up.seconds,
        "modelcache_scale_up_origin_bytes": found.scale_up.origin_bytes,
    }
    for metric, value in plain.items():
        yield Series(metric, namespace, {"model": name}, value)
    leads: dict[str, Lead] = {"warm": found.warm, "cold": found.cold, "next": found.lead}
    for tier, lead in leads.items():
        for quantile, value in (("0.5", lead.p50_s), ("0.9", lead.p90_s)):
            labels = {"model": name, "tier": tier, "quantile": quantile}
            yield Series(PREDICTED, namespace, labels, value)


def _load(scale: Scale, found: Outlook) -> float | None:
    """Of the replicas that there are, and of one where there is none."""
    if found.rate is None:
        return None
    capacity = scale.asked.per_replica * max(1, found.ready + found.starting)
    return lead_time_load(found.rate, found.slope, found.lead.p90_s, capacity)
