"""What a pod becomes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from modelcache.errors import UsageError
from modelcache.faces.kubernetes import names
from modelcache.faces.webhook.mutation import Choices, mutate
from tests.faces.webhook.support import (
    LLAMA,
    LLAMA_ID,
    LLAMA_VOLUME,
    QWEN,
    QWEN_ID,
    QWEN_VOLUME,
    Known,
    mutated,
    pod,
)

MOUNT = {"name": LLAMA_VOLUME, "mountPath": "/models/llama", "readOnly": True}
VOLUME = {
    "name": LLAMA_VOLUME,
    "csi": {
        "driver": "csi.modelcache.io",
        "readOnly": True,
        "volumeAttributes": {"model": LLAMA},
    },
}
ASKED = f"{LLAMA}=/models/llama"


def container(name: str = "main", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "example.test/server", **more}


def mounting(path: str, name: str = "scratch", **more: Any) -> dict[str, Any]:
    return container(volumeMounts=[{"name": name, "mountPath": path, **more}])


def test_a_model_becomes_a_volume_and_a_mount():
    after = mutated(pod(ASKED))
    assert after["spec"]["volumes"] == [VOLUME]
    assert after["spec"]["containers"][0]["volumeMounts"] == [MOUNT]
    assert after["metadata"]["annotations"][names.INJECTED] == "true"
    assert after["metadata"]["labels"] == {"modelcache.io/pod": "true"}
    assert "affinity" not in after["spec"]
    assert "schedulingGates" not in after["spec"]


def test_what_is_there_stays_and_comes_first():
    theirs = {"name": "scratch", "emptyDir": {}}
    mount = {"name": "scratch", "mountPath": "/scratch"}
    after = mutated(
        pod(ASKED, spec={"volumes": [theirs], "containers": [container(volumeMounts=[mount])]})
    )
    assert after["spec"]["volumes"] == [theirs, VOLUME]
    assert after["spec"]["containers"][0]["volumeMounts"] == [mount, MOUNT]


@pytest.mark.parametrize("empty", [None, []])
def test_empty_lists_are_filled(empty: list | None):
    before = pod(ASKED, spec={"volumes": empty, "containers": [container(volumeMounts=empty)]})
    after = mutated(before)
    assert after["spec"]["volumes"] == [VOLUME]
    assert after["spec"]["containers"][0]["volumeMounts"] == [MOUNT]


def test_init_containers_get_the_mount_too():
    after = mutated(pod(ASKED, spec={"initContainers": [container("setup")]}))
    assert after["spec"]["initContainers"][0]["volumeMounts"] == [MOUNT]


def test_only_named_containers_get_it():
    spec = {"containers": [container("main"), container("sidecar")]}
    after = mutated(pod(ASKED, containers="main", spec=spec))
    assert "volumeMounts" in after["spec"]["containers"][0]
    assert "volumeMounts" not in after["spec"]["containers"][1]


def test_the_pull_secret_is_brought_by_every_volume():
    after = mutated(pod(ASKED, **{"pull-secret": "llama-reader"}))
    (volume,) = after["spec"]["volumes"]
    assert volume["csi"]["nodePublishSecretRef"] == {"name": "llama-reader"}
    with pytest.raises(UsageError, match="no Secret's name"):
        mutated(pod(ASKED, **{"pull-secret": "Not A Name"}))


def test_one_volume_for_a_model_at_two_paths():
    after = mutated(pod(f"{LLAMA}=/a,{LLAMA}=/b"))
    assert after["spec"]["volumes"] == [VOLUME]
    assert [m["mountPath"] for m in after["spec"]["containers"][0]["volumeMounts"]] == ["/a", "/b"]


def test_two_models_have_a_volume_each():
    after = mutated(pod(f"{LLAMA}=/a\n{QWEN}=/b"))
    assert [volume["name"] for volume in after["spec"]["volumes"]] == [LLAMA_VOLUME, QWEN_VOLUME]


def test_a_model_without_a_path_is_only_noted():
    after = mutated(pod(LLAMA))
    assert "volumes" not in after["spec"]
    assert after["metadata"]["annotations"][names.INJECTED] == "true"


def test_the_priority_goes_to_the_driver():
    after = mutated(pod(ASKED, priority="40"))
    attributes = after["spec"]["volumes"][0]["csi"]["volumeAttributes"]
    assert attributes == {"model": LLAMA, "priority": "40"}


@pytest.mark.parametrize("text", ["", " ", ",\n"])
def test_an_empty_annotation_changes_nothing_and_gates_nothing(text: str):
    assert mutate(pod(text), Choices(gate=True), Known()) == []


# A second pass


def test_a_second_pass_has_nothing_to_do():
    known = Known({LLAMA: [LLAMA_ID]})
    once = mutated(pod(ASKED, priority="3"), known, gate=True)
    assert mutate(once, Choices(gate=True), known) == []


def test_a_second_pass_mounts_into_containers_that_came_since():
    once = mutated(pod(ASKED))
    once["spec"]["containers"].append(container("injected"))
    twice = mutated(once)
    assert [c["volumeMounts"] for c in twice["spec"]["containers"]] == [[MOUNT], [MOUNT]]
    assert twice["spec"]["volumes"] == [VOLUME]


def test_the_mode_goes_to_the_driver_and_a_wrong_one_is_told():
    annotated = pod(ASKED)
    annotated["metadata"]["annotations"][names.MODE] = "stream"
    after = mutated(annotated)
    attributes = after["spec"]["volumes"][0]["csi"]["volumeAttributes"]
    assert attributes == {"model": LLAMA, "mode": "stream"}
    (mount,) = mutated(annotated)["spec"]["containers"][0]["volumeMounts"]
    assert mount == {**MOUNT, "mountPropagation": "HostToContainer"}
    assert mutated(mutated(annotated)) == mutated(annotated)
    annotated["metadata"]["annotations"][names.MODE] = "full"
    assert mutated(annotated)["spec"]["volumes"] == [VOLUME]
    annotated["metadata"]["annotations"][names.MODE] = "lazy"
    with pytest.raises(UsageError, match=r"modelcache.io/mode is 'lazy'; there are full and"):
        mutated(annotated)


def test_a_copied_pod_gets_its_new_priority():
    once = mutated(pod(ASKED, priority="3"))
    once["metadata"]["annotations"][names.PRIORITY] = "80"
    once["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"] = {"name": "theirs"}
    csi = mutated(once)["spec"]["volumes"][0]["csi"]
    assert csi["volumeAttributes"] == {"model": LLAMA, "priority": "80"}
    assert csi["nodePublishSecretRef"] == {"name": "theirs"}


# Where it should run


def terms(after: dict[str, Any]) -> list[tuple[str, str, int]]:
    preferred = after["spec"]["affinity"]["nodeAffinity"]
    found = []
    for term in preferred["preferredDuringSchedulingIgnoredDuringExecution"]:
        (expression,) = term["preference"]["matchExpressions"]
        assert expression["operator"] == "In"
        (value,) = expression["values"]
        found.append((expression["key"], value, term["weight"]))
    return found


def test_nodes_that_have_the_model_are_preferred():
    label = "warm.modelcache.io/0123456789ab"
    assert terms(mutated(pod(LLAMA), Known({LLAMA: [LLAMA_ID]}))) == [
        (label, "100", 100),
        (label, "75", 75),
        (label, "50", 50),
        (label, "25", 25),
    ]


def test_models_share_the_weight():
    known = Known({LLAMA: [LLAMA_ID], QWEN: [QWEN_ID]})
    found = terms(mutated(pod(f"{LLAMA},{QWEN}=/q"), known))
    assert [weight for _, _, weight in found] == [50, 37, 25, 12] * 2
    # What nobody has ever seen takes no share.
    found = terms(mutated(pod(f"{LLAMA},{QWEN}"), Known({QWEN: [QWEN_ID]})))
    assert [weight for _, _, weight in found] == [100, 75, 50, 25]


def test_weights_stay_in_bounds_for_the_most_models():
    refs = [f"s3://bucket/{number}" for number in range(32)]
    known = Known({ref: [f"{number:02x}" * 32] for number, ref in enumerate(refs)})
    weights = [weight for _, _, weight in terms(mutated(pod(",".join(refs)), known))]
    assert len(weights) == 4 * 32
    assert all(1 <= weight <= 100 for weight in weights)


def test_their_affinity_stays():
    theirs = {
        "weight": 7,
        "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
    }
    affinity = {
        "podAffinity": {"x": []},
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []},
            "preferredDuringSchedulingIgnoredDuringExecution": [theirs],
        },
    }
    after = mutated(pod(LLAMA, spec={"affinity": affinity}), Known({LLAMA: [LLAMA_ID]}))
    result = after["spec"]["affinity"]
    assert result["podAffinity"] == {"x": []}
    node = result["nodeAffinity"]
    assert node["requiredDuringSchedulingIgnoredDuringExecution"] == {"nodeSelectorTerms": []}
    assert len(node["preferredDuringSchedulingIgnoredDuringExecution"]) == 5
    assert node["preferredDuringSchedulingIgnoredDuringExecution"][0] == theirs


@pytest.mark.parametrize("present", [None, {}, {"nodeAffinity": None}, {"podAffinity": {"x": []}}])
def test_missing_levels_are_made(present: dict | None):
    after = mutated(pod(LLAMA, spec={"affinity": present}), Known({LLAMA: [LLAMA_ID]}))
    assert len(terms(after)) == 4
    assert after["spec"]["affinity"].get("podAffinity") == (present or {}).get("podAffinity")


def test_a_pod_whose_node_is_chosen_gets_neither_preference_nor_gate():
    known = Known({LLAMA: [LLAMA_ID]})
    after = mutated(pod(LLAMA, spec={"nodeName": "node-1"}), known, gate=True)
    assert "affinity" not in after["spec"]
    assert "schedulingGates" not in after["spec"]


@pytest.mark.parametrize(
    ("flag", "annotation", "gated"),
    [
        (False, None, False),
        (False, "true", True),
        (True, None, True),
        (True, "false", False),
    ],
)
def test_the_gate_is_asked_for_by_flag_or_annotation(
    flag: bool, annotation: str | None, gated: bool
):
    more = {} if annotation is None else {"gate": annotation}
    after = mutated(pod(LLAMA, **more), gate=flag)
    assert after["spec"].get("schedulingGates") == (
        [{"name": "modelcache.io/weights"}] if gated else None
    )


def test_who_reads_while_it_comes_waits_at_no_gate_unless_they_say_so():
    annotated = pod(ASKED)
    annotated["metadata"]["annotations"][names.MODE] = "stream"
    assert "schedulingGates" not in mutated(annotated, gate=True)["spec"]
    annotated["metadata"]["annotations"]["modelcache.io/gate"] = "true"
    assert mutated(annotated)["spec"]["schedulingGates"]


def test_no_gate_where_a_node_has_all_of_it():
    both = pod(f"{LLAMA},{QWEN}", gate="true", gate_timeout="10m")
    assert "schedulingGates" in mutated(both, Known(whole=[LLAMA]))["spec"]
    assert "schedulingGates" not in mutated(both, Known(whole=[LLAMA, QWEN]))["spec"]


def test_a_readiness_gate_is_added_once_where_it_is_asked_for():
    assert "readinessGates" not in mutated(pod(LLAMA))["spec"]
    once = mutated(pod(LLAMA, readiness_gate="true"))
    assert once["spec"]["readinessGates"] == [{"conditionType": "modelcache.io/WeightsReady"}]
    assert mutate(once, Choices(), Known()) == []
    theirs = pod(LLAMA, readiness_gate="true", spec={"readinessGates": [{"conditionType": "x"}]})
    assert len(mutated(theirs)["spec"]["readinessGates"]) == 2


# What is refused


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        ("ftp://host/x=/m", {}, r"unknown scheme 'ftp'.*known are s3://"),
        ("s3://=/m", {}, r"modelcache.io/models: .*"),
        (f"{LLAMA}=/m,{QWEN}=/m", {}, r"two models at /m"),
        (f"{LLAMA}=/m,{QWEN}=/m/q", {}, r"/m/q, inside another at /m"),
        (f"{LLAMA}=/proc", {}, r"cannot be mounted at /proc"),
        (ASKED, {"mode": "lazy"}, r"modelcache.io/mode is 'lazy'"),
        (ASKED, {"priority": "101"}, r"modelcache.io/priority must be a number from 0 to 100"),
        (ASKED, {"priority": "high"}, r"must be a number"),
        (ASKED, {"containers": "man"}, r"names 'man'; the pod's containers are main"),
        (LLAMA, {"containers": "man"}, r"names 'man'"),
        (LLAMA, {"gate": "yes"}, r"modelcache.io/gate is 'yes'; write true or false"),
        (LLAMA, {"readiness_gate": "1"}, r"modelcache.io/readiness-gate is '1'; write true or"),
        (LLAMA, {"gate_timeout": "soon"}, r"gate-timeout: 'soon' is not a duration"),
        (LLAMA, {"gate_timeout": "0s"}, r"gate-timeout must be more than 0s"),
        (LLAMA, {"gate_timeout": "8d"}, r"at most 7d"),
    ],
)
def test_a_users_mistake_is_told(models: str, more: dict[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        mutated(pod(models, **more))


@pytest.mark.parametrize(
    "path", ["/models/llama", "/models/llama/", "/models//x/../llama", "models/llama"]
)
def test_a_path_that_is_taken_is_refused(path: str):
    with pytest.raises(UsageError, match=r"container 'main' has volume 'scratch' at /models/llama"):
        mutated(pod(ASKED, spec={"containers": [mounting(path)]}))


def test_a_mount_inside_the_model_is_refused():
    with pytest.raises(UsageError, match=r"at /models/llama/cache, inside /models/llama"):
        mutated(pod(ASKED, spec={"containers": [mounting("/models/llama/cache")]}))


def test_a_device_at_the_path_is_refused():
    device = container(volumeDevices=[{"name": "disk", "devicePath": "/models/llama"}])
    with pytest.raises(UsageError, match=r"device 'disk'"):
        mutated(pod(ASKED, spec={"containers": [device]}))


def test_a_model_inside_a_writable_mount_is_fine():
    after = mutated(pod(ASKED, spec={"containers": [mounting("/models")]}))
    assert after["spec"]["containers"][0]["volumeMounts"][1] == MOUNT


@pytest.mark.parametrize("outer", ["/models", "/"])
def test_a_model_inside_a_read_only_mount_is_refused(outer: str):
    with pytest.raises(UsageError, match=r"read-only, so nothing can be mounted inside"):
        mutated(pod(ASKED, spec={"containers": [mounting(outer, readOnly=True)]}))


@pytest.mark.parametrize(
    "source",
    [
        {"configMap": {"name": "x"}},
        {"secret": {"secretName": "x"}},
        {"projected": {"sources": []}},
        {"csi": {"driver": "other", "readOnly": True}},
        {"persistentVolumeClaim": {"claimName": "x", "readOnly": True}},
    ],
)
def test_a_model_inside_a_volume_that_is_never_writable_is_refused(source: dict[str, Any]):
    spec = {"volumes": [{"name": "scratch", **source}], "containers": [mounting("/models")]}
    with pytest.raises(UsageError, match="read-only"):
        mutated(pod(ASKED, spec=spec))


def test_paths_that_only_begin_alike_do_not_clash():
    after = mutated(pod(ASKED, spec={"containers": [mounting("/models/llama-2", readOnly=True)]}))
    assert len(after["spec"]["containers"][0]["volumeMounts"]) == 2


def test_clashes_in_containers_that_are_left_out_do_not_count():
    spec = {"containers": [mounting("/models/llama"), container("other")]}
    after = mutated(pod(ASKED, containers="other", spec=spec))
    assert after["spec"]["containers"][1]["volumeMounts"] == [MOUNT]


@pytest.mark.parametrize(
    "source",
    [
        {"emptyDir": {}},
        {"csi": {"driver": "csi.modelcache.io", "volumeAttributes": {"model": QWEN}}},
    ],
)
def test_somebody_elses_volume_of_our_name_is_refused(source: dict[str, Any]):
    with pytest.raises(UsageError, match="rename that volume"):
        mutated(pod(ASKED, spec={"volumes": [{"name": LLAMA_VOLUME, **source}]}))


def test_a_signed_url_is_not_repeated():
    url = "https://host/llama?signature=SECRET"
    with pytest.raises(UsageError) as caught:
        mutated(pod(f"{url}=/models", spec={"containers": [mounting("/models")]}))
    assert "SECRET" not in caught.value.message
