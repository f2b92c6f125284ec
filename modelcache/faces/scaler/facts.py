"""What is remembered of nodes and pods: a hundredth of what the API server tells. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from lightkube.models.core_v1 import Container
from lightkube.resources.core_v1 import Node, Pod
from lightkube.utils.quantity import parse_quantity

FINISHED: Final = ("Failed", "Succeeded")
"""Phases of pods that hold nothing any more."""


@dataclass(frozen=True, slots=True)
class Meta:
    """As much of an object's metadata as an informer needs."""

    namespace: str
    name: str
    resourceVersion: str  # noqa: N815 - as objects have it


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod. bound_s, ready_s: seconds since the epoch; None where it is not yet."""

    metadata: Meta
    uid: str
    labels: Mapping[str, str]
    node: str = ""
    address: str = ""
    devices: Mapping[str, int] = field(default_factory=dict)
    bound_s: float | None = None
    ready_s: float | None = None
    leaving: bool = False

    @property
    def starting(self) -> bool:
        """Whether it is on its way to being ready."""
        return bool(self.node) and self.ready_s is None and not self.leaving

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.ready_s is not None and not self.leaving

    def has(self, selector: Mapping[str, str]) -> bool:
        """Whether it has these labels."""
        return all(self.labels.get(name) == value for name, value in selector.items())


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node. devices: how many of each extended resource it has."""

    metadata: Meta
    devices: Mapping[str, int]
    schedulable: bool


def pod_facts(pod: Pod) -> PodFacts:
    """Read a pod."""
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    conditions = (status.conditions if status is not None else None) or []
    since = {each.type: _seconds(each.lastTransitionTime) for each in conditions}
    true = {each.type for each in conditions if each.status == "True"}
    labels = (metadata.labels if metadata is not None else None) or {}
    return PodFacts(
        metadata=_meta(metadata),
        uid=str(metadata.uid) if metadata is not None else "",
        labels={sys.intern(name): sys.intern(value) for name, value in labels.items()},
        node=sys.intern((spec.nodeName if spec is not None else None) or ""),
        address=(status.podIP if status is not None else None) or "",
        devices=_devices(pod),
        bound_s=since.get("PodScheduled") if "PodScheduled" in true else None,
        ready_s=since.get("Ready") if "Ready" in true else None,
        leaving=metadata is not None and metadata.deletionTimestamp is not None,
    )


def node_facts(node: Node) -> NodeFacts:
    """Read a node. Schedulable: ready, and not cordoned; taints are for a pod to tolerate."""
    spec, status = node.spec, node.status
    conditions = (status.conditions if status is not None else None) or []
    ready = any(each.type == "Ready" and each.status == "True" for each in conditions)
    cordoned = bool(spec is not None and spec.unschedulable)
    return NodeFacts(
        metadata=_meta(node.metadata),
        devices=_extended((status.allocatable if status is not None else None) or {}),
        schedulable=ready and not cordoned,
    )


def used_devices(pods: Iterable[PodFacts]) -> dict[str, dict[str, int]]:
    """By node: how many of each resource its pods have been given."""
    used: dict[str, dict[str, int]] = {}
    for pod in pods:
        if not (pod.node and pod.devices):
            continue
        here = used.setdefault(pod.node, {})
        for name, count in pod.devices.items():
            here[name] = here.get(name, 0) + count
    return used


def _devices(pod: Pod) -> dict[str, int]:
    """What its containers ask for together, or one of those that run before them alone."""
    if pod.spec is None:
        return {}
    together: dict[str, int] = {}
    for container in pod.spec.containers:
        for name, count in _asked(container).items():
            together[name] = together.get(name, 0) + count
    for container in pod.spec.initContainers or []:
        for name, count in _asked(container).items():
            together[name] = max(together.get(name, 0), count)
    return together


def _asked(container: Container) -> dict[str, int]:
    resources = container.resources
    if resources is None:
        return {}
    return _extended({**(resources.limits or {}), **(resources.requests or {})})


def _extended(amounts: Mapping[str, str]) -> dict[str, int]:
    """Devices have a domain in their name; cpu, memory and the like are no matter here."""
    return {
        sys.intern(name): int(parse_quantity(str(amount)) or Decimal(0))
        for name, amount in amounts.items()
        if "/" in name
    }


def _meta(metadata: Any) -> Meta:  # noqa: ANN401 - ObjectMeta or nothing
    if metadata is None:
        return Meta("", "", "")
    return Meta(metadata.namespace or "", metadata.name or "", metadata.resourceVersion or "")


def _seconds(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()
