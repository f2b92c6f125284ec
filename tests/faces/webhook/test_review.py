"""The protocol: questions of the API server's, and answers that it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelcache.domain.refs import Ref
from modelcache.errors import UsageError
from modelcache.faces.webhook.mutation import Choices
from modelcache.faces.webhook.review import Outcome, Reviewer
from tests.faces.webhook.support import LLAMA, Known, Remembered, operations_in, pod, review


def ask(question: object, known: Known | None = None) -> tuple[Outcome, dict[str, Any]]:
    reviewer = Reviewer(Choices(), known or Known(), Remembered())
    outcome, answer = reviewer.answer(json.dumps(question).encode())
    assert answer["apiVersion"] == "admission.k8s.io/v1"
    assert answer["kind"] == "AdmissionReview"
    return outcome, answer["response"]


def test_an_answer_carries_the_patch_and_the_uid():
    question = review(pod(f"{LLAMA}=/m"))
    outcome, response = ask(question)
    assert outcome is Outcome.PATCHED
    assert response["uid"] == question["request"]["uid"]
    assert response["allowed"] is True
    assert {each["path"] for each in operations_in(response)} == {
        "/metadata/annotations/modelcache.io~1injected",
        "/metadata/labels",
        "/spec/volumes",
        "/spec/containers/0/volumeMounts",
    }


def test_a_pod_without_the_annotation_is_left_alone():
    outcome, response = ask(review(pod()))
    assert outcome is Outcome.UNCHANGED
    assert response == {"uid": response["uid"], "allowed": True}


@pytest.mark.parametrize(
    "more",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"operation": "CONNECT"},
        {"subResource": "ephemeralcontainers"},
        {"subResource": "binding"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": {"group": "example.test", "version": "v1", "kind": "Pod"}},
    ],
)
def test_anything_but_a_new_pod_is_let_through(more: dict[str, Any]):
    outcome, response = ask(review(pod(f"{LLAMA}=/m"), **more))
    assert outcome is Outcome.UNCHANGED
    assert response == {"uid": response["uid"], "allowed": True}


def test_a_dry_run_has_the_same_answer():
    question = review(pod(f"{LLAMA}=/m"))
    assert ask(question) == ask({**question, "request": {**question["request"], "dryRun": True}})


def test_a_mistake_is_denied_with_a_message():
    outcome, response = ask(review(pod("s4://bucket/x=/m")))
    assert outcome is Outcome.DENIED
    assert response["allowed"] is False
    assert "patch" not in response
    assert response["status"]["code"] == 400
    assert "unknown scheme 's4'" in response["status"]["message"]


class Broken(Known):
    def model_ids(self, ref: Ref) -> list[str]:
        raise ZeroDivisionError(ref.authority)


def test_a_bug_lets_the_pod_through_and_says_so():
    log = Remembered()
    body = json.dumps(review(pod(f"{LLAMA}=/m"))).encode()
    outcome, answer = Reviewer(Choices(), Broken(), log).answer(body)
    assert outcome is Outcome.FAILED
    response = answer["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert "ZeroDivisionError" in warning
    assert len(warning) <= 256
    (told,) = log.named("admission_failed")
    assert told["pod"] == "server"
    assert "model_ids" in told["traceback"]


@pytest.mark.parametrize(
    "subject",
    [None, [], "x", {"metadata": {"annotations": {"modelcache.io/models": f"{LLAMA}=/m"}}}],
)
def test_objects_that_are_no_pods_are_let_through(subject: object):
    question = review(pod())
    question["request"]["object"] = subject
    _, response = ask(question)
    assert response["allowed"] is True


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "x"}}',
        b'{"apiVersion": "admission.k8s.io/v1"}',
        b'{"apiVersion": "admission.k8s.io/v1", "request": {}}',
    ],
)
def test_what_is_no_review_is_refused(body: bytes):
    with pytest.raises(UsageError):
        Reviewer(Choices(), Known(), Remembered()).answer(body)
