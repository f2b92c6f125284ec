"""What a volume's attributes ask for: ours, and those of a driver that users come from.

They are written by people, in pods and PersistentVolumes; a name that is not known is refused, or a
misspelt filter would mount the whole model. The driver and the watcher of pods read them alike, so
that both mean one model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelcache.domain.members import Priority
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.volumes import MountMode, mount_mode
from modelcache.domain.wanted import PRIORITY_MAX
from modelcache.errors import UsageError

MODEL: Final = "model"
KNOWN: Final = (MODEL, "mode", "include", "exclude", "subPath", "priority", "pullPolicy")
MODELPACK: Final = "model.csi.modelpack.org/"
WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.onnx", "*.h5", "*.npz")
_POD: Final = "csi.storage.k8s.io/pod."


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be mounted. refresh: resolve the ref anew. note: which pod it is for.

    tenant: the pod's namespace.
    """

    ref: Ref
    sub_path: str
    priority: int
    refresh: bool
    note: str
    tenant: str
    mode: MountMode = MountMode.FULL


def parse(attributes: Mapping[str, str]) -> Asked:
    """Read a volume's attributes. Raises UsageError, saying which one is wrong and how."""
    # Kubernetes and provisioners add names with a slash; nobody else's are ours to judge.
    unknown = [name for name in attributes if "/" not in name and name not in KNOWN]
    if unknown:
        raise UsageError(
            f"volume attribute {unknown[0][:60]!r} is not known; there are {', '.join(KNOWN)}"
        )
    policy = attributes.get("pullPolicy", "IfNotPresent")
    if policy not in {"IfNotPresent", "Always"}:
        raise UsageError("volume attribute pullPolicy must be IfNotPresent or Always")
    return Asked(
        ref=_ref(attributes),
        sub_path=attributes.get("subPath", "").strip("/"),
        priority=_priority(attributes.get("priority", "")),
        refresh=policy == "Always",
        note=_note(attributes),
        tenant=attributes.get(f"{_POD}namespace", ""),
        mode=mount_mode(attributes.get("mode", MountMode.FULL), "volume attribute mode"),
    )


def _ref(attributes: Mapping[str, str]) -> Ref:
    written = attributes.get(MODEL, "")
    reference = attributes.get(f"{MODELPACK}reference", "")
    if bool(written) == bool(reference):
        raise UsageError(
            f"a volume needs the attribute {MODEL}, such as s3://bucket/llama"
            + (f", and not {MODELPACK}reference beside it" if written else "")
        )
    ref = parse_ref(written or f"oci://{reference.removeprefix('oci://')}")
    excluded = [*_globs(attributes, "exclude"), *_modelpack_excludes(attributes)]
    return ref.filtered(_globs(attributes, "include"), excluded)


def _modelpack_excludes(attributes: Mapping[str, str]) -> list[str]:
    excluded = _globs(attributes, f"{MODELPACK}exclude-file-patterns")
    if attributes.get(f"{MODELPACK}exclude-model-weights", "").lower() == "true":
        excluded += WEIGHTS
    return excluded


def _globs(attributes: Mapping[str, str], name: str) -> list[str]:
    """A comma-separated list, or one of JSON where a pattern has a comma in it."""
    text = attributes.get(name, "").strip()
    if not text.startswith("["):
        return [glob.strip() for glob in text.split(",") if glob.strip()]
    try:
        globs = json.loads(text)
    except ValueError:
        globs = None
    if not isinstance(globs, list) or not all(isinstance(glob, str) and glob for glob in globs):
        raise UsageError(
            f"volume attribute {name} begins like a JSON list of patterns, but is none"
        )
    return list(globs)


def _priority(text: str) -> int:
    if not text:
        return int(Priority.MOUNTED)
    if not text.isascii() or not text.isdigit() or int(text) > PRIORITY_MAX:
        raise UsageError(f"volume attribute priority must be a number from 0 to {PRIORITY_MAX}")
    return int(text)


def _note(attributes: Mapping[str, str]) -> str:
    name, space = attributes.get(f"{_POD}name", ""), attributes.get(f"{_POD}namespace", "")
    return f"pod {space}/{name}"[:200] if name else ""
