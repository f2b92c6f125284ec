"""The outlook of any scale, worked out when somebody asks and kept while nothing has changed."""

from __future__ import annotations

import threading
from typing import Final

from modelcache.errors import SourceUnavailable
from modelcache.faces.scaler.cluster import Cluster, View
from modelcache.faces.scaler.declared import Key, Scale
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.starts import Starts
from modelcache.forecast.outlook import Outlook, outlook
from modelcache.forecast.slots import jointly_packed

NOT_SYNCED: Final = "the cluster has not been listed yet"


class Outlooks:
    """See the module. Thread-safe."""

    def __init__(self, cluster: Cluster, demand: Demand, starts: Starts) -> None:
        self._cluster = cluster
        self._demand = demand
        self._starts = starts
        self._kept: dict[Key, tuple[int, float, Outlook]] = {}
        self._packed: tuple[int, dict[str, int]] = (-1, {})
        self._lock = threading.Lock()

    def view(self) -> View:
        """The newest view. Raises SourceUnavailable while there is none."""
        found = self._cluster.view()
        if found is None:
            raise SourceUnavailable(NOT_SYNCED)
        return found

    def of(self, scale: Scale, view: View) -> Outlook:
        """How it stands with one scale. Raises UsageError for what cannot be asked."""
        samples = self._demand.samples(scale.key)
        sampled_s = samples[-1].at_s if samples else -1.0
        with self._lock:
            kept = self._kept.get(scale.key)
            if kept is not None and kept[:2] == (view.number, sampled_s):
                return kept[2]
        server = view.servers[scale.key]
        found = outlook(
            scale.asked,
            scale.slot_key,
            view.places.get(scale.gpu_resource, ()),
            ready=sum(pod.ready for pod in server.pods),
            starting=self._starts.under_way(scale.key, view),
            samples=samples,
            seen=self._starts.seen(scale.key),
            model_bytes=server.model_bytes,
            pending=sum(not pod.node and not pod.leaving for pod in server.pods),
        )
        with self._lock:
            if len(self._kept) > 2 * len(view.scales):
                self._kept.clear()
            self._kept[scale.key] = (view.number, sampled_s, found)
        return found

    def forget(self, key: Key) -> None:
        """Work it out anew: more is known of the past than before."""
        with self._lock:
            self._kept.pop(key, None)

    def shared_slots(self, scale: Scale, view: View) -> int:
        """Warm slots of a scale when all scales' replicas take places in turn."""
        with self._lock:
            number, packed = self._packed
        if number != view.number:
            packed = _pack(view)
            with self._lock:
                self._packed = (view.number, packed)
        return packed.get(scale.slot_key, 0)

    def problem(self, key: Key) -> str:
        """Why no demand is known; empty where it is."""
        return self._demand.problem(key)


def _pack(view: View) -> dict[str, int]:
    packed: dict[str, int] = {}
    for resource, places in view.places.items():
        gpus = {
            scale.slot_key: scale.asked.gpus
            for scale in view.scales.values()
            if scale.gpu_resource == resource
        }
        packed.update(jointly_packed(places, gpus))
    return packed
