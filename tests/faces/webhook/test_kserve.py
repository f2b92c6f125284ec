"""Pods as KServe's own webhook makes them (0.15.2; see kserve_pods.json), and what becomes of them.

The file holds what that webhook's code made of plain predictors, each with one storage URI.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.pods import models_of
from modelcache.faces.webhook import kserve
from modelcache.faces.webhook.mutation import Choices
from modelcache.faces.webhook.review import Outcome, Reviewer
from tests.faces.webhook.support import LLAMA_ID, Known, Remembered, operations_in, patched, review

PODS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("kserve_pods.json").read_text()
)
ASKED = "s3://models/llama?endpoint=http://minio.storage:9000&region=eu-west-1"


def answered(
    pod: dict[str, Any], known: Known | None = None
) -> tuple[Outcome, dict[str, Any], list[str]]:
    """How the review ended, the pod after it, and warnings."""
    reviewer = Reviewer(Choices(), known or Known(), Remembered())
    outcome, answer = reviewer.answer(json.dumps(review(pod)).encode())
    response = answer["response"]
    assert response["allowed"], response
    return outcome, patched(pod, operations_in(response)), response.get("warnings", [])


def named(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == name)
    return found


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}


def test_the_download_becomes_a_volume_at_the_same_path():
    outcome, after, warnings = answered(PODS["s3"], Known({ASKED: [LLAMA_ID]}))
    assert outcome is Outcome.PATCHED
    assert warnings == []
    assert not after["spec"]["initContainers"]
    assert not [v for v in after["spec"]["volumes"] if v["name"] == kserve.VOLUME]
    volume = mounts(named(after, "kserve-container"))[kserve.MOUNT_PATH]
    (csi,) = (v["csi"] for v in after["spec"]["volumes"] if v["name"] == volume)
    assert csi["driver"] == names.CSI_DRIVER
    assert csi["volumeAttributes"] == {"model": ASKED}
    assert csi["nodePublishSecretRef"] == {"name": "s3-secret"}
    assert after["spec"]["affinity"]["nodeAffinity"]
    assert after["metadata"]["annotations"][names.STORAGE_URI] == "s3://models/llama"


def test_kserve_asked_again_finds_nothing_to_do():
    _, after, _ = answered(PODS["s3"])
    assert kserve.SOURCE not in after["metadata"]["annotations"]
    assert answered(after) == (Outcome.UNCHANGED, after, [])


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("hub", "hf://org/name@abc123"),
        ("gs", "gs://models/llama"),
        ("https", "https://host.test/weights.bin"),
        ("modelcar", "oci://registry.test/models/llama:1.0"),
    ],
)
def test_every_scheme_of_both_is_taken_over(name: str, ref: str):
    _, after, _ = answered(PODS[name])
    (model,) = models_of(after["metadata"]["annotations"]).models
    assert (str(model.ref), model.mount_path) == (ref, "/mnt/models")
    assert kserve.MOUNT_PATH in mounts(named(after, "kserve-container"))


def test_a_modelcar_is_no_container_any_more():
    before = PODS["modelcar"]
    assert named(before, "modelcar")
    _, after, _ = answered(before)
    assert [each["name"] for each in after["spec"]["containers"]] == ["kserve-container"]
    assert not after["spec"]["initContainers"]
    assert list(mounts(named(after, "kserve-container"))) == [kserve.MOUNT_PATH]


def test_only_containers_that_saw_the_download_see_the_model():
    _, after, _ = answered(PODS["with_transformer"])
    for name in ("kserve-container", "transformer-container"):
        assert kserve.MOUNT_PATH in mounts(named(after, name))
    assert not mounts(named(after, "queue-proxy"))


def test_a_token_that_only_the_download_had_is_told():
    _, after, (warning,) = answered(PODS["hub"])
    assert "modelcache.io/pull-secret" in warning
    secret = deepcopy(PODS["hub"])
    secret["metadata"]["annotations"][names.PULL_SECRET] = "hub"
    _, after, warnings = answered(secret)
    assert warnings == []
    volume = mounts(named(after, "kserve-container"))[kserve.MOUNT_PATH]
    (csi,) = (v["csi"] for v in after["spec"]["volumes"] if v["name"] == volume)
    assert csi["nodePublishSecretRef"] == {"name": "hub"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("claim", "pvc://claim/llama is a claim, which is mounted as it is"),
        ("writable", "storage is to be writable"),
    ],
)
def test_what_stays_kserves_is_said_and_left(name: str, words: str):
    outcome, after, (warning,) = answered(PODS[name])
    assert outcome is Outcome.UNCHANGED
    assert after == PODS[name]
    assert words in warning


@pytest.mark.parametrize("uri", ["hdfs://name/path", "s3://models/llama.tar.gz"])
def test_what_modelcache_cannot_fetch_is_left_to_kserve(uri: str):
    before = deepcopy(PODS["s3"])
    before["spec"]["initContainers"][0]["args"][0] = uri
    outcome, after, warnings = answered(before)
    assert outcome is Outcome.UNCHANGED
    assert after == before
    assert "leaves the storageUri to KServe" in warnings[0]


def test_several_uris_become_several_models():
    before = deepcopy(PODS["s3"])
    (initializer,) = before["spec"]["initContainers"]
    pairs = ["s3://models/base", "/mnt/models/base", "hf://org/adapter", "/mnt/models/adapter"]
    initializer["args"] = pairs
    _, after, _ = answered(before)
    assert set(mounts(named(after, "kserve-container"))) >= {pairs[1], pairs[3]}


def test_models_of_the_annotation_stay_beside_it():
    before = deepcopy(PODS["gs"])
    before["metadata"]["annotations"][names.MODELS] = "hf://org/adapter=/adapters/one"
    _, after, _ = answered(before)
    assert set(mounts(named(after, "kserve-container"))) == {"/adapters/one", kserve.MOUNT_PATH}


def test_before_kserve_has_been_asked_there_is_nothing_to_do():
    before = deepcopy(PODS["gs"])
    before["spec"]["initContainers"] = []
    assert answered(before) == (Outcome.UNCHANGED, before, [])


def test_without_the_annotation_kserves_pods_are_untouched():
    before = deepcopy(PODS["s3"])
    del before["metadata"]["annotations"][names.KSERVE]
    assert answered(before) == (Outcome.UNCHANGED, before, [])


def test_the_annotation_is_true_or_false():
    before = deepcopy(PODS["s3"])
    before["metadata"]["annotations"][names.KSERVE] = "yes"
    with pytest.raises(UsageError, match="write true or false"):
        kserve.concerns(before)
