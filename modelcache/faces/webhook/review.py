"""AdmissionReview (`admission.k8s.io/v1`): the API server's question, and our answer.

A pod is refused for what its writer got wrong, and for nothing else: a bug of ours lets it through
unchanged, with a warning that its creator sees, so that the webhook can never stop a cluster.
"""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.logs import Log
from modelcache.faces.webhook import kserve
from modelcache.faces.webhook.mutation import Choices, concerns, mutate
from modelcache.faces.webhook.patches import Operation
from modelcache.faces.webhook.warmth import Warmth

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
DENIED_CODE: Final = 400
FRAMES_MAX: Final = 20  # of a traceback, the innermost
MESSAGE_MAX: Final = 1000  # characters: a person reads it in an event or a terminal
WARNING_MAX: Final = 250  # the API server cuts at 256

Json = dict[str, Any]


class Outcome(StrEnum):
    """How a review ended; a label of metrics."""

    UNCHANGED = "unchanged"
    PATCHED = "patched"
    DENIED = "denied"
    FAILED = "failed"


class Reviewer:
    """Answers reviews. It has no state of its own, and no side effects: a dry run is no other."""

    def __init__(self, choices: Choices, warmth: Warmth, log: Log) -> None:
        self._choices = choices
        self._warmth = warmth
        self._log = log

    def answer(self, body: bytes) -> tuple[Outcome, Json]:
        """The answer to a review. Raises UsageError where the body is none."""
        request = _request(body)
        response: Json = {"uid": request["uid"], "allowed": True}
        try:
            outcome, more = self._decide(request)
        except UsageError as error:
            outcome, more = Outcome.DENIED, _denial(error)
            self._log.info("pod_denied", message=error.message[:MESSAGE_MAX], **_which(request))
        except Exception as error:  # noqa: BLE001 - a bug, which a pod must not suffer from
            outcome, more = Outcome.FAILED, _warning(error)
            trace = traceback.format_exc(limit=-FRAMES_MAX)
            self._log.error("admission_failed", traceback=trace, **_which(request))
        response.update(more)
        return outcome, {"apiVersion": API_VERSION, "kind": KIND, "response": response}

    def _decide(self, request: Mapping[str, Any]) -> tuple[Outcome, Json]:
        if not _is_new_pod(request):
            return Outcome.UNCHANGED, {}
        pod = request["object"]
        taken = kserve.take_over(pod) if kserve.concerns(pod) else kserve.Taken(pod)
        patch = list(taken.operations)
        if concerns(taken.pod):
            patch += mutate(taken.pod, self._choices, self._warmth)
        more: Json = {}
        if taken.warnings:
            more["warnings"] = [text[:WARNING_MAX] for text in taken.warnings]
        if not patch:
            return Outcome.UNCHANGED, more
        self._log.debug("pod_patched", operations=len(patch), **_which(request))
        return Outcome.PATCHED, _patch(patch) | more


def _request(body: bytes) -> Mapping[str, Any]:
    try:
        review = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {type(error).__name__}") from error
    if not isinstance(review, dict) or review.get("apiVersion") != API_VERSION:
        raise UsageError(f"the body is no {KIND} of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise UsageError("the review has no request with a uid")
    return request


def _is_new_pod(request: Mapping[str, Any]) -> bool:
    kind = request.get("kind") or {}
    return (
        request.get("operation") == "CREATE"
        and not request.get("subResource")
        and (kind.get("group") or "", kind.get("kind")) == ("", "Pod")
    )


def _patch(operations: list[Operation]) -> Json:
    text = json.dumps(operations, separators=(",", ":")).encode()
    return {"patchType": "JSONPatch", "patch": base64.b64encode(text).decode()}


def _denial(error: UsageError) -> Json:
    status = {
        "status": "Failure",
        "code": DENIED_CODE,
        "reason": "BadRequest",
        "message": error.message[:MESSAGE_MAX],
    }
    return {"allowed": False, "status": status}


def _warning(error: Exception) -> Json:
    text = (
        f"modelcache left this pod as it is, because of a bug: {type(error).__name__}; "
        f"the models of annotation {names.MODELS} are not mounted"
    )
    return {"warnings": [text[:WARNING_MAX]]}


def _which(request: Mapping[str, Any]) -> dict[str, str]:
    """For the log; a pod of a controller has no name yet."""
    pod = request.get("object")
    metadata = (pod.get("metadata") if isinstance(pod, dict) else None) or {}
    name = request.get("name") or metadata.get("name") or metadata.get("generateName") or ""
    return {"namespace": str(request.get("namespace", "")), "pod": str(name)}
