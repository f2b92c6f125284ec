"""Where a model is warm, how many replicas fit there, and when one would be ready.

Nodes come as values; who watches them is no matter of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

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
    packing = _Packing([place for place in places if place.schedulable], gpus)
    packed = dict.fromkeys(gpus, 0)
    waiting = sorted(gpus, key=lambda model: (-gpus[model], model))
    while waiting:
        waiting = [model for model in waiting if packing.place_one(model)]
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


class _Packing:
    """What is free while replicas take their places.

    Each model has a heap of the nodes that have it, the best first. A node's entry is good while
    it says what is free there now; whoever takes something puts new entries into the heaps of all
    models that the node has. So a replica costs a step in a heap, not a look at every node.
    """

    def __init__(self, places: Sequence[Place], gpus: Mapping[str, int]) -> None:
        self._gpus = gpus
        self._free = {place.name: max(0, place.free_gpus) for place in places}
        self._models = {
            place.name: [
                model for model in place.models if model in gpus and _is_warm(place, model)
            ]
            for place in places
        }
        self._heaps: dict[str, list[tuple[int, int, str]]] = {model: [] for model in gpus}
        for place in places:
            self._offer(place.name)

    def place_one(self, model: str) -> bool:
        """Give one replica the node of the fewest rivals, then the least room. False: none fits."""
        heap, needed = self._heaps[model], self._gpus[model]
        while heap:
            _, free, name = heappop(heap)
            if free == self._free[name] and free >= needed:
                self._free[name] -= needed
                self._offer(name)
                return True
        return False

    def _offer(self, name: str) -> None:
        free, models = self._free[name], self._models[name]
        for model in models:
            if free >= self._gpus[model]:
                heappush(self._heaps[model], (len(models), free, name))
