"""Where models are mounted in a pod's containers, and what stands in the way.

Two mounts at one path cannot be. A mount inside a model would hide a part of it, or fail, as a
model is read-only. A model inside another mount is fine where that can be written: the runtime
mounts outer paths first, and makes the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Any, Final

from modelcache.domain.refs import Ref
from modelcache.domain.volumes import MountMode
from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.pods import PodModels

NAME_PREFIX: Final = "modelcache-"
NAME_DIGITS: Final = 12
# Kinds of volumes that kubelet mounts read-only whatever the mount says.
_READ_ONLY: Final = ("configMap", "downwardAPI", "image", "projected", "secret")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mount:
    """A model at a path. volume: its name in the pod. streams: whether it may come meanwhile."""

    ref: Ref
    volume: str
    path: str
    streams: bool = False

    def to_json(self) -> Json:
        """What a container says to have it.

        What covers a stream when all of it is here comes to containers that run by then.
        """
        plain: Json = {"name": self.volume, "mountPath": self.path, "readOnly": True}
        return {**plain, "mountPropagation": "HostToContainer"} if self.streams else plain


def volume_name(ref: Ref) -> str:
    """The same for the same ref in every pod, so that a second pass finds what the first made."""
    return f"{NAME_PREFIX}{wanted_id(ref)[:NAME_DIGITS]}"


def mounts_of(asked: PodModels) -> list[Mount]:
    """Each model that is to be seen at a path."""
    return [
        Mount(model.ref, volume_name(model.ref), model.mount_path, asked.mode is MountMode.STREAM)
        for model in asked.models
        if model.mount_path
    ]


def volume_for(mount: Mount, asked: PodModels) -> Json:
    """The inline volume that kubelet asks our driver for."""
    attributes = {"model": str(mount.ref)}
    if asked.priority is not None:
        attributes["priority"] = str(asked.priority)
    if asked.mode is not MountMode.FULL:
        attributes["mode"] = asked.mode.value
    csi: Json = {"driver": names.CSI_DRIVER, "readOnly": True, "volumeAttributes": attributes}
    if asked.pull_secret:
        csi["nodePublishSecretRef"] = {"name": asked.pull_secret}
    return {"name": mount.volume, "csi": csi}


def read_only_volumes(volumes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of volumes in which no folder can be made, as far as the pod says."""
    return {volume["name"] for volume in volumes if _is_read_only(volume)}


def new_mounts(
    container: Mapping[str, Any], wanted: Sequence[Mount], read_only: set[str]
) -> list[Json]:
    """What a container lacks of what is wanted. Raises UsageError where something is in the way.

    read_only: see `read_only_volumes`.
    """
    present = list(_present(container, read_only))
    made = {(each.volume, each.path) for each in present}
    added = []
    for mount in wanted:
        if (mount.volume, mount.path) in made:
            continue
        for other in present:
            _check(container["name"], mount, other)
        added.append(mount.to_json())
    return added


@dataclass(frozen=True, slots=True)
class _Present:
    """Something that a container mounts. what: as it is named to people."""

    path: str
    what: str
    volume: str = ""
    read_only: bool = False


def _present(container: Mapping[str, Any], read_only: set[str]) -> Iterator[_Present]:
    for mount in container.get("volumeMounts") or ():
        name = mount["name"]
        fixed = bool(mount.get("readOnly")) or name in read_only
        yield _Present(_normal(mount["mountPath"]), f"volume {name!r}", name, fixed)
    for device in container.get("volumeDevices") or ():
        yield _Present(_normal(device["devicePath"]), f"device {device['name']!r}", read_only=True)


def _check(container: str, wanted: Mount, other: _Present) -> None:
    ref, path = wanted.ref.redacted(), wanted.path
    advice = f"choose another path for {ref} in annotation {names.MODELS}"
    if other.path == path:
        raise UsageError(f"container {container!r} has {other.what} at {path} already; {advice}")
    if other.path.startswith(f"{path}/"):
        raise UsageError(
            f"container {container!r} has {other.what} at {other.path}, inside {path}, where the "
            f"model would be read-only; {advice}"
        )
    if other.read_only and path.startswith(f"{other.path.rstrip('/')}/"):
        raise UsageError(
            f"container {container!r} has {other.what} at {other.path}, read-only, so nothing can "
            f"be mounted inside it at {path}; {advice}"
        )


def _is_read_only(volume: Mapping[str, Any]) -> bool:
    if any(volume.get(kind) is not None for kind in _READ_ONLY):
        return True
    return any(
        bool((volume.get(kind) or {}).get("readOnly")) for kind in ("csi", "persistentVolumeClaim")
    )


def _normal(path: str) -> str:
    """As the runtime sees it: absolute, and without what means nothing."""
    return normpath(f"/{path.lstrip('/')}")
