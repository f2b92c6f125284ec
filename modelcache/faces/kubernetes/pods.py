"""Which models a pod wants, and where: from its annotations, and from volumes it wrote itself.

The annotation `modelcache.io/models` holds `REF[=MOUNTPATH]`, separated by commas or new lines. A
path is told from a query's value by its slash: `s3://bucket/llama?region=eu=/models/llama`. All
that is read here was written by somebody; the reason why it cannot be is for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from modelcache.domain import attributes
from modelcache.domain.members import Priority
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.volumes import MountMode, mount_mode
from modelcache.domain.wanted import PRIORITY_MAX
from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names

MODELS_MAX: Final = 32
ANNOTATION_BYTES_MAX: Final = 64 << 10
_SEPARATORS: Final = re.compile(r"[,\n]+")
# A mount path stands behind the last "=/"; no ref has that in it.
_MOUNT: Final = re.compile(r"=(?=/)")
_SECRET: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_FORBIDDEN: Final = ("/", "/proc", "/sys", "/dev", "/etc")


@dataclass(frozen=True, slots=True)
class PodModel:
    """One model of a pod. mount_path: empty where it is only to be warm."""

    ref: Ref
    mount_path: str = ""


@dataclass(frozen=True, slots=True)
class PodModels:
    """All that a pod wants.

    priority: None where the pod does not say. pull_secret: a Secret of the pod's namespace, which
    its volumes must bring; empty for none.
    """

    models: tuple[PodModel, ...]
    priority: int | None = None
    containers: tuple[str, ...] = ()
    pull_secret: str = ""
    mode: MountMode = MountMode.FULL

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Each once, in the order of the annotation."""
        return tuple(dict.fromkeys(model.ref for model in self.models))


def models_of(annotations: Mapping[str, str]) -> PodModels:
    """What a pod's annotations ask for. Raises UsageError, saying what to change."""
    text = annotations.get(names.MODELS, "")
    if len(text.encode()) > ANNOTATION_BYTES_MAX:
        raise UsageError(f"annotation {names.MODELS} is longer than {ANNOTATION_BYTES_MAX} bytes")
    found = tuple(_models(text))
    if len(found) > MODELS_MAX:
        raise UsageError(f"annotation {names.MODELS} names more than {MODELS_MAX} models")
    _check_paths(found)
    mode = mount_mode(annotations.get(names.MODE, MountMode.FULL), f"annotation {names.MODE}")
    secret = annotations.get(names.PULL_SECRET, "").strip()
    if secret and not _SECRET.fullmatch(secret):
        raise UsageError(f"annotation {names.PULL_SECRET}: {secret[:60]!r} is no Secret's name")
    return PodModels(found, _priority(annotations), _containers(annotations), secret, mode)


def refs_in_volumes(volumes: Iterable[Mapping[str, Any]]) -> Iterator[Ref]:
    """Models that a pod's inline CSI volumes name; volumes that are wrong are kubelet's to tell.

    volumes: `spec.volumes`, as JSON values.
    """
    for volume in volumes:
        csi = volume.get("csi") or {}
        if csi.get("driver") != names.CSI_DRIVER:
            continue
        with suppress(UsageError):
            yield attributes.parse(csi.get("volumeAttributes") or {}).ref


def _models(text: str) -> Iterator[PodModel]:
    for entry in filter(None, map(str.strip, _SEPARATORS.split(text))):
        parts = _MOUNT.split(entry)
        path = parts[-1] if len(parts) > 1 else ""
        written = entry[: len(entry) - len(path) - 1] if path else entry
        try:
            ref = parse_ref(written)
        except UsageError as error:
            raise UsageError(f"annotation {names.MODELS}: {error.message}") from error
        yield PodModel(ref, _mount_path(path) if path else "")


def _mount_path(path: str) -> str:
    plain = path.rstrip("/") or "/"
    steps = plain.split("/")[1:]
    if any(step in {"", ".", ".."} for step in steps) or ":" in plain or not plain.isprintable():
        raise UsageError(f"annotation {names.MODELS}: {path[:80]!r} is not a plain absolute path")
    if plain in _FORBIDDEN:
        raise UsageError(f"annotation {names.MODELS}: a model cannot be mounted at {plain}")
    return plain


def _check_paths(models: tuple[PodModel, ...]) -> None:
    taken: dict[str, Ref] = {}
    for model in models:
        if not model.mount_path:
            continue
        for path, ref in taken.items():
            if path == model.mount_path and ref == model.ref:
                raise UsageError(f"annotation {names.MODELS} names {path} twice")
            if path == model.mount_path:
                raise UsageError(
                    f"annotation {names.MODELS} mounts two models at {path}: {ref.redacted()} and "
                    f"{model.ref.redacted()}"
                )
            inner, outer = sorted((path, model.mount_path), key=len, reverse=True)
            if inner.startswith(f"{outer}/"):
                raise UsageError(
                    f"annotation {names.MODELS} mounts a model at {inner}, inside another at "
                    f"{outer}, which is read-only"
                )
        taken[model.mount_path] = model.ref


def _priority(annotations: Mapping[str, str]) -> int | None:
    text = annotations.get(names.PRIORITY)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > PRIORITY_MAX:
        raise UsageError(f"annotation {names.PRIORITY} must be a number from 0 to {PRIORITY_MAX}")
    return int(text)


def _containers(annotations: Mapping[str, str]) -> tuple[str, ...]:
    text = annotations.get(names.CONTAINERS, "")
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


SCHEDULED: Final = int(Priority.SCHEDULED)
"""How urgent a pod's models are from its binding on, until kubelet asks for them."""
