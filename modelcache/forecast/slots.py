"""Where a model is warm, how many replicas fit there, and when one would be ready.

Nodes come as values; who watches them is no matter of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelcache.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ready:
    """Seconds until the weights would be ready, as predicted."""

    p50_s: float
    p90_s: float
    confident: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """One model of a node."""

    warm: bool
    missing_bytes: int | None = None
    ready: Ready | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """One node. models: by id. free_gpus: what no pod has been given; schedulable: takes pods."""

    name: str
    free_gpus: int = 0
    schedulable: bool = True
    models: Mapping[str, Held] = field(default_factory=dict)


def warm_nodes(places: Iterable[Place], model: str) -> int:
    """Nodes with every byte of it."""
    return sum(1 for place in places if _is_warm(place, model))


def warm_slots(places: Iterable[Place], model: str, gpus: int) -> int:
    """Replicas that would start warm, if no other model took the places. Raises UsageError."""
    if gpus < 1:
        raise UsageError("a replica needs at least one GPU to have a place")
    return sum(
        max(0, place.free_gpus) // gpus
        for place in places
        if place.schedulable and _is_warm(place, model)
    )


def jointly_packed(places: Sequence[Place], gpus: Mapping[str, int]) -> dict[str, int]:
    """Slots of each model when all share the same GPUs. gpus: those one replica needs, by model.

    In turns, one replica each, so that no model takes all; the one that needs most goes first, as
    it fits in the fewest places, and takes the node that has fewest models warm. What comes out
    can be had at once; a better packing may exist. Raises UsageError.
    """
    if any(needed < 1 for needed in gpus.values()):
        raise UsageError("a replica needs at least one GPU to have a place")
    free = {place.name: max(0, place.free_gpus) for place in places if place.schedulable}
    rivals = {place.name: sum(1 for model in gpus if _is_warm(place, model)) for place in places}
    packed = dict.fromkeys(gpus, 0)
    waiting = sorted(gpus, key=lambda model: (-gpus[model], model))
    while waiting:
        waiting = [
            model for model in waiting if _place_one(places, model, gpus[model], free, rivals)
        ]
        for model in waiting:
            packed[model] += 1
    return packed


def best_ready(places: Iterable[Place], model: str) -> Ready | None:
    """The soonest any node says it would be ready, by its p90; None where none says."""
    said = [
        held.ready
        for place in places
        if place.schedulable and (held := place.models.get(model)) and held.ready
    ]
    return min(said, key=lambda ready: (ready.p90_s, ready.p50_s), default=None)


def _is_warm(place: Place, model: str) -> bool:
    held = place.models.get(model)
    return held is not None and held.warm


def _place_one(
    places: Sequence[Place],
    model: str,
    needed: int,
    free: dict[str, int],
    rivals: Mapping[str, int],
) -> bool:
    fitting = [
        place.name
        for place in places
        if free.get(place.name, 0) >= needed and _is_warm(place, model)
    ]
    if not fitting:
        return False
    free[min(fitting, key=lambda name: (rivals[name], free[name], name))] -= needed
    return True
