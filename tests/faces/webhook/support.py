"""Pods, a patch's effect, what a cluster knows, and a log that remembers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from modelcache.domain.refs import Ref, parse_ref
from modelcache.faces.kubernetes import names
from modelcache.faces.webhook.mounts import volume_name
from modelcache.faces.webhook.mutation import Choices, mutate

LLAMA = "s3://bucket/llama"
QWEN = "hf://org/qwen"
LLAMA_ID = "0123456789abcdef" * 4
QWEN_ID = "fedcba9876543210" * 4
LLAMA_VOLUME = volume_name(parse_ref(LLAMA))
QWEN_VOLUME = volume_name(parse_ref(QWEN))


class Known:
    """What nodes have. whole: refs that one node has together."""

    def __init__(self, ids: dict[str, list[str]] | None = None, whole: Sequence[str] = ()) -> None:
        self.ids = ids or {}
        self.whole = whole

    def model_ids(self, ref: Ref) -> list[str]:
        return self.ids.get(str(ref), [])

    def together_somewhere(self, refs: Sequence[Ref]) -> bool:
        return all(str(ref) in self.whole for ref in refs)


class Remembered:
    """A log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def _tell(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    debug = info = warning = error = _tell

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]


def pod(models: str | None = None, /, **more: Any) -> dict[str, Any]:
    """A pod as the API server shows it. more: annotations without their prefix; or `spec`."""
    spec = more.pop("spec", {})
    annotations = {f"modelcache.io/{name.replace('_', '-')}": text for name, text in more.items()}
    if models is not None:
        annotations[names.MODELS] = models
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "server",
            "namespace": "default",
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"containers": [{"name": "main", "image": "example.test/server"}], **spec},
    }


def mutated(
    before: dict[str, Any], known: Known | None = None, *, gate: bool = False
) -> dict[str, Any]:
    """The pod after its mutation, as the API server sees it."""
    return patched(before, mutate(before, Choices(gate=gate), known or Known()))


def patched(document: dict[str, Any], operations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """RFC 6902, as far as we use it; strict about what must be there."""
    result = deepcopy(document)
    for operation in operations:
        steps = [
            step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]
        ]
        here: Any = result
        for step in steps[:-1]:
            here = here[int(step)] if isinstance(here, list) else here[step]
        _apply(operation, here, steps[-1])
    return result


def _apply(operation: dict[str, Any], here: Any, last: str) -> None:
    value = deepcopy(operation.get("value"))
    match operation["op"], here:
        case "add", list() if last == "-":
            here.append(value)
        case "add", list():
            here.insert(int(last), value)
        case "add", dict():
            here[last] = value
        case "remove", dict():
            del here[last]
        case "replace", list():
            here[int(last)] = value
        case "replace", dict():
            assert last in here, operation
            here[last] = value
        case other:
            raise AssertionError(other)


def review(subject: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A question of the API server's."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "server",
            "namespace": "default",
            "operation": "CREATE",
            "object": subject,
            "oldObject": None,
            "dryRun": False,
            **more,
        },
    }


def operations_in(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The patch of a response; empty for none."""
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    found: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"]))
    return found
