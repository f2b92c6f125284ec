"""From a pod to what is to be changed in it. Pure: the same pod gives the same patch.

A second pass over what a first one made changes nothing: volumes, mounts, preferences and gates
are recognised, whoever brought the pod here again - a later webhook, or a person who copied it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelcache.config import parse_duration
from modelcache.domain.volumes import MountMode
from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.pods import PodModels, models_of
from modelcache.faces.webhook import affinity
from modelcache.faces.webhook.mounts import (
    Mount,
    mounts_of,
    new_mounts,
    read_only_volumes,
    volume_for,
)
from modelcache.faces.webhook.patches import Operation, extending, replacing, setting
from modelcache.faces.webhook.warmth import Warmth

GATE_ASKED: Final = "modelcache.io/gate"
READINESS_ASKED: Final = "modelcache.io/readiness-gate"
INJECTED: Final = "true"
GATE_TIMEOUT_MAX_S: Final = 7 * 86400.0  # whoever waits longer has forgotten the pod

Pod = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choices:
    """How this webhook was started. gate: pods wait for their weights unless they say otherwise."""

    gate: bool = False


def concerns(pod: Pod) -> bool:
    """Whether a pod asks for models; nothing is ever changed in one that does not."""
    return names.MODELS in _annotations(pod)


def mutate(pod: Pod, choices: Choices, warmth: Warmth) -> list[Operation]:
    """What to change in a pod that asks for models. Raises UsageError, saying what is wrong."""
    annotations = _annotations(pod)
    asked = models_of(annotations)
    gate = _gate_asked(annotations, choices)
    readiness = _flag(annotations, READINESS_ASKED, default=False)
    if not asked.models:
        return []
    spec = pod["spec"]
    wanted = mounts_of(asked)
    bound = bool(spec.get("nodeName"))  # its node is chosen: no preference, and no gate is allowed
    metadata = pod.get("metadata") or {}
    return [
        *setting(metadata, "annotations", names.INJECTED, INJECTED, at=["metadata"]),
        *setting(metadata, "labels", names.POD_LABEL, INJECTED, at=["metadata"]),
        *_volumes(spec, wanted, asked),
        *_mounts(spec, wanted, asked.containers),
        *([] if bound else _preferences(spec, asked, warmth)),
        *([] if bound or not gate else _gate(spec, asked, warmth)),
        *(_readiness(spec) if readiness else []),
    ]


def _annotations(pod: Pod) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("annotations") or {}


def _volumes(spec: Mapping[str, Any], wanted: list[Mount], asked: PodModels) -> Iterator[Operation]:
    present = {
        volume["name"]: (place, volume) for place, volume in enumerate(spec.get("volumes") or ())
    }
    added = []
    for mount in {mount.volume: mount for mount in wanted}.values():
        volume = volume_for(mount, asked)
        if mount.volume not in present:
            added.append(volume)
            continue
        place, found = present[mount.volume]
        csi = found.get("csi") or {}
        attributes = csi.get("volumeAttributes") or {}
        if csi.get("driver") != names.CSI_DRIVER or attributes.get("model") != str(mount.ref):
            raise UsageError(
                f"the pod has a volume {mount.volume!r}, which is the name for "
                f"{mount.ref.redacted()}, with something else in it; rename that volume"
            )
        if csi != {**csi, **volume["csi"]}:  # of a pod that was copied, and its priority changed
            yield replacing({**csi, **volume["csi"]}, "spec", "volumes", place, "csi")
    yield from extending(spec, ["volumes"], added, at=["spec"])


def _mounts(
    spec: Mapping[str, Any], wanted: list[Mount], chosen: tuple[str, ...]
) -> Iterator[Operation]:
    containers = [
        (kind, place, container)
        for kind in ("initContainers", "containers")
        for place, container in enumerate(spec.get(kind) or ())
    ]
    there = [container["name"] for _, _, container in containers]
    missing = [name for name in chosen if name not in there]
    if missing:
        raise UsageError(
            f"annotation {names.CONTAINERS} names {missing[0][:80]!r}; the pod's containers are "
            f"{', '.join(there)}"
        )
    read_only = read_only_volumes(spec.get("volumes") or ())
    for kind, place, container in containers:
        if not chosen or container["name"] in chosen:
            added = new_mounts(container, wanted, read_only)
            yield from extending(container, ["volumeMounts"], added, at=["spec", kind, place])


def _preferences(spec: Mapping[str, Any], asked: PodModels, warmth: Warmth) -> list[Operation]:
    ids = [warmth.model_ids(ref) for ref in asked.refs]
    return extending(spec, affinity.PATH, affinity.preferences(ids, spec), at=["spec"])


def _gate_asked(annotations: Mapping[str, str], choices: Choices) -> bool:
    timeout = annotations.get(names.GATE_TIMEOUT)
    if timeout is not None:
        try:
            seconds = parse_duration(timeout)
        except UsageError as error:
            raise UsageError(f"annotation {names.GATE_TIMEOUT}: {error.message}") from error
        if not 0 < seconds <= GATE_TIMEOUT_MAX_S:
            raise UsageError(
                f"annotation {names.GATE_TIMEOUT} must be more than 0s, and at most 7d"
            )
    # Who reads while it comes waits for nothing, unless they say so.
    streams = annotations.get(names.MODE) == MountMode.STREAM
    return _flag(annotations, GATE_ASKED, default=choices.gate and not streams)


def _flag(annotations: Mapping[str, str], name: str, *, default: bool) -> bool:
    match annotations.get(name):
        case None:
            return default
        case "true":
            return True
        case "false":
            return False
        case other:
            raise UsageError(f"annotation {name} is {other[:20]!r}; write true or false")


def _gate(spec: Mapping[str, Any], asked: PodModels, warmth: Warmth) -> list[Operation]:
    present = {gate["name"] for gate in spec.get("schedulingGates") or ()}
    if names.GATE in present or warmth.together_somewhere(asked.refs):
        return []
    return extending(spec, ["schedulingGates"], [{"name": names.GATE}], at=["spec"])


def _readiness(spec: Mapping[str, Any]) -> list[Operation]:
    """The pod is not ready before its weights are; the controller tells that in its condition."""
    present = {gate["conditionType"] for gate in spec.get("readinessGates") or ()}
    if names.WEIGHTS_READY in present:
        return []
    added = [{"conditionType": names.WEIGHTS_READY}]
    return extending(spec, ["readinessGates"], added, at=["spec"])
