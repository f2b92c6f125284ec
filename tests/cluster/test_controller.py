"""The controller on a real API server: labels, conditions, gates, statuses, and who leads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
from lightkube import ApiError, Client
from lightkube.models.core_v1 import PodCondition, PodReadinessGate, PodSchedulingGate
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Event, Node, Pod
from lightkube.types import PatchType

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.faces.controller.controlling import Controlling
from modelcache.faces.controller.leading import Leading
from modelcache.faces.controller.readiness import MESSAGE_EVERY_S
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.objects import ModelPrefetch, NodeModels, now_text
from tests.cluster.support import delete_pod, events_of, make_node, make_pod, remove, wait_until
from tests.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster
LLAMA, QWEN = "s3://models/llama", "hf://org/qwen"
IDS = {LLAMA: "a" * 64, QWEN: "b" * 64}


def report(
    client: Client,
    node: str,
    ready: bool = True,
    seconds: tuple[float, float] | None = None,
    **percents: int,
) -> None:
    """As the node's agent tells it. percents: by name, `llama` or `qwen`. seconds: p50 and p90."""
    if not [one for one in client.list(NodeModels) if one.metadata.name == node]:
        client.create(
            NodeModels.from_dict(
                {
                    "apiVersion": "modelcache.io/v1alpha1",
                    "kind": "NodeModels",
                    "metadata": {"name": node},
                }
            )
        )
    refs = {"llama": LLAMA, "qwen": QWEN}
    models = [
        {
            "ref": refs[name],
            "wantedId": wanted_id(parse_ref(refs[name])),
            "modelId": IDS[refs[name]],
            "phase": "warm" if percent == 100 else "transferring",
            "percent": percent,
            "holders": 1,
            "message": "" if percent == 100 else f"fetching {percent}/100 GB",
            "totalBytes": 100,
            "doneBytes": percent,
            **(
                {"ready": {"p50Seconds": seconds[0], "p90Seconds": seconds[1], "confident": True}}
                if seconds is not None
                else {}
            ),
        }
        for name, percent in percents.items()
    ]
    status = {"agent": {"ready": ready, "reasons": []}, "models": models, "updatedAt": now_text()}
    client.patch(NodeModels.Status, node, {"status": status}, patch_type=PatchType.MERGE)


@contextmanager
def controlling(plane: ControlPlane) -> Iterator[Controlling]:
    over = threading.Event()
    with plane.client() as client:
        controller = Controlling(client)
        thread = threading.Thread(target=controller.lead, args=(over,))
        thread.start()
        try:
            yield controller
        finally:
            over.set()
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def nodes(client: Client) -> Iterator[tuple[str, str]]:
    made = ("n1", "n2")
    for name in made:
        make_node(client, name, pool="gpu")
    yield made
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    client.deletecollection(Event, namespace="default")
    for name in made:
        remove(client, Node, name)
        remove(client, NodeModels, name)
    for item in client.list(ModelPrefetch):
        remove(client, ModelPrefetch, item.metadata.name)


def labels_of(client: Client, node: str) -> dict[str, str]:
    labels = client.get(Node, node).metadata.labels or {}
    return {name: value for name, value in labels.items() if name.startswith("warm.")}


def condition_of(client: Client, node: str) -> tuple[str, str] | None:
    for condition in client.get(Node, node).status.conditions or []:
        if condition.type == names.AGENT_READY:
            return condition.status, condition.reason
    return None


@pytest.mark.usefixtures("nodes")
def test_labels_follow_what_agents_tell_and_others_stay(client: Client, plane: ControlPlane):
    report(client, "n1", llama=100, qwen=40)
    client.patch(
        Node,
        "n2",
        {"metadata": {"labels": {names.warm_label("c" * 64): "100"}}},
        patch_type=PatchType.MERGE,
    )
    llama, qwen = names.warm_label(IDS[LLAMA]), names.warm_label(IDS[QWEN])
    with controlling(plane):
        wait_until(lambda: labels_of(client, "n1") == {llama: "100", qwen: "25"})
        wait_until(lambda: labels_of(client, "n2") == {})  # nobody stands for it
        assert client.get(Node, "n1").metadata.labels["pool"] == "gpu"
        wait_until(lambda: condition_of(client, "n1") == ("True", "AgentReady"))
        assert condition_of(client, "n2") is None
        report(client, "n1", ready=False, qwen=99)
        wait_until(lambda: labels_of(client, "n1") == {qwen: "75"})
        wait_until(lambda: condition_of(client, "n1") == ("False", "AgentNotReady"))


def prefetch(client: Client, name: str, **spec: Any) -> None:
    client.create(
        ModelPrefetch.from_dict(
            {
                "apiVersion": "modelcache.io/v1alpha1",
                "kind": "ModelPrefetch",
                "metadata": {"name": name},
                "spec": {"refs": [LLAMA], **spec},
            }
        )
    )


def status_of(client: Client, name: str) -> dict[str, Any]:
    status: dict[str, Any] = client.get(ModelPrefetch, name).get("status") or {}
    return status


def ready_of(client: Client, name: str) -> str:
    (condition,) = status_of(client, name).get("conditions") or [{"reason": ""}]
    return str(condition["reason"])


@pytest.mark.usefixtures("nodes")
def test_a_prefetch_says_how_far_its_nodes_are(client: Client, plane: ControlPlane):
    report(client, "n1", llama=100)
    report(client, "n2", llama=30)
    with controlling(plane):
        prefetch(client, "all", nodeSelector={"pool": "gpu"})
        prefetch(client, "none", nodeSelector={"pool": "cpu"})
        status = wait_until(lambda: s if (s := status_of(client, "all")).get("nodes") else None)
        assert (status["nodes"], status["warm"], status["warming"]) == (2, 1, 1)
        assert status["perNode"][0] == {
            "node": "n2",
            "phase": "Warming",
            "percent": 30,
            "message": "fetching 30/100 GB",
        }
        assert ready_of(client, "all") == "Warming"
        wait_until(lambda: ready_of(client, "none") == "NoNodes")
        report(client, "n2", llama=100)
        wait_until(lambda: ready_of(client, "all") == "Warm")


@pytest.mark.usefixtures("nodes")
def test_claims_among_the_refs_are_ignored_with_a_word(client: Client, plane: ControlPlane):
    report(client, "n1", llama=100)
    with controlling(plane):
        prefetch(client, "served", refs=[LLAMA, "pvc://claim/llama"], nodeSelector={"pool": "gpu"})
        wait_until(lambda: ready_of(client, "served") in {"Warm", "Warming"})
        (condition,) = status_of(client, "served")["conditions"]
        assert (
            "ignored, as claims are mounted as they are: pvc://claim/llama" in condition["message"]
        )
        prefetch(client, "claims", refs=["pvc://claim/llama"], nodeSelector={})
        wait_until(lambda: ready_of(client, "claims") == "NothingToFetch")


def test_parallelism_lets_one_node_after_the_other(
    client: Client, plane: ControlPlane, nodes: tuple[str, str]
):
    for node in nodes:
        report(client, node)
    with controlling(plane):
        prefetch(client, "slow", parallelism=1)
        wait_until(lambda: status_of(client, "slow").get("admitted") == ["n1"])
        report(client, "n1", llama=50)
        sleep(1.0)
        assert status_of(client, "slow")["admitted"] == ["n1"]
        report(client, "n1", llama=100)
        wait_until(lambda: status_of(client, "slow").get("admitted") == ["n1", "n2"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"refs": []}, "at least 1"),
        ({"refs": ["ftp://x"]}, "should match"),
        ({"priority": 101}, "less than or equal to 100"),
        ({"retention": "soon"}, "should match"),
        ({"unknown": 1}, ""),
    ],
)
def test_schemas_refuse_what_cannot_be(client: Client, spec: dict[str, Any], words: str):
    if not words:
        prefetch(client, "x", **spec)
        assert "unknown" not in client.get(ModelPrefetch, "x")["spec"]
        remove(client, ModelPrefetch, "x")
        return
    with pytest.raises(ApiError, match=words):
        prefetch(client, "x", **spec)


def gated(client: Client, name: str, **annotations: str) -> None:
    pod = make_pod(
        client,
        name,
        annotations={names.MODELS: f"{LLAMA}=/m", **annotations},
        schedulingGates=[PodSchedulingGate(name="other/gate"), PodSchedulingGate(name=names.GATE)],
    )
    client.patch(
        Pod,
        name,
        {"metadata": {"labels": {names.POD_LABEL: "true"}}},
        namespace=pod.metadata.namespace,
        patch_type=PatchType.MERGE,
    )


def gates_of(client: Client, name: str) -> list[str]:
    gates = client.get(Pod, name, namespace="default").spec.schedulingGates or []
    return [gate.name for gate in gates]


@pytest.mark.usefixtures("nodes")
def test_gates_are_lifted_when_a_node_is_warm_or_time_is_over(client: Client, plane: ControlPlane):
    report(client, "n1", llama=80)
    with controlling(plane):
        gated(client, "waits")
        gated(client, "hurries", **{names.GATE_TIMEOUT: "1s"})
        wait_until(lambda: gates_of(client, "hurries") == ["other/gate"])
        assert gates_of(client, "waits") == ["other/gate", names.GATE]
        report(client, "n1", llama=100)
        wait_until(lambda: gates_of(client, "waits") == ["other/gate"])
        told = wait_until(lambda: events_of(client, "waits").get("WeightsGateLifted"))
        assert "node n1 is warm" in told


def label(client: Client, pod: str) -> None:
    """As the webhook does it."""
    labels = {"metadata": {"labels": {names.POD_LABEL: "true"}}}
    client.patch(Pod, pod, labels, namespace="default", patch_type=PatchType.MERGE)


@pytest.mark.usefixtures("nodes")
def test_a_bound_pod_has_a_condition_that_its_weights_are_there(
    client: Client, plane: ControlPlane
):
    report(client, "n1", llama=50)
    make_pod(client, "p", node="n1", annotations={names.MODELS: LLAMA})
    label(client, "p")

    def condition() -> str | None:
        found = client.get(Pod, "p", namespace="default").status.conditions or []
        return next((c.status for c in found if c.type == names.WEIGHTS_READY), None)

    with controlling(plane):
        wait_until(lambda: condition() == "False")
        report(client, "n1", llama=100)
        wait_until(lambda: condition() == "True")


@pytest.mark.usefixtures("nodes")
def test_a_pod_is_not_ready_before_its_weights_and_says_for_how_long(
    client: Client, plane: ControlPlane
):
    report(client, "n1", llama=62, seconds=(41.0, 66.0))
    gates = [PodReadinessGate(conditionType=names.WEIGHTS_READY)]
    make_pod(client, "p", node="n1", annotations={names.MODELS: LLAMA}, readinessGates=gates)
    label(client, "p")

    def condition() -> PodCondition | None:
        found = client.get(Pod, "p", namespace="default").status.conditions or []
        return next((c for c in found if c.type == names.WEIGHTS_READY), None)

    with controlling(plane):
        told = wait_until(condition)
        assert (told.status, told.reason) == ("False", "Fetching")
        assert told.message == "62% eta 41s p90 66s"
        report(client, "n1", llama=80, seconds=(20.0, 31.0))
        wait_until(lambda: (c := condition()) and c.message == "80% eta 20s p90 31s")
        since = condition()
        assert since is not None
        assert since.lastTransitionTime == told.lastTransitionTime
        assert (since.lastProbeTime - told.lastProbeTime).total_seconds() >= MESSAGE_EVERY_S - 1
        report(client, "n1", llama=100)
        wait_until(lambda: (c := condition()) and c.status == "True")


def test_one_of_several_leads_and_another_follows_it(client: Client):
    led: list[str] = []

    def candidate(name: str) -> tuple[Leading, threading.Thread]:
        leading = Leading(
            client,
            name="lead",
            namespace="default",
            me=name,
            duration_s=2,
            retry_s=0.2,
        )

        def lead(over: threading.Event) -> None:
            led.append(name)
            over.wait()

        thread = threading.Thread(target=leading.run, args=(lead,))
        thread.start()
        return leading, thread

    one, first = candidate("one")
    wait_until(lambda: led == ["one"])
    two, second = candidate("two")
    sleep(3.0)  # longer than the Lease lasts
    assert led == ["one"]
    one.stop()
    first.join(10)
    wait_until(lambda: led == ["one", "two"])
    lease = client.get(Lease, "lead", namespace="default")
    assert (lease.spec.holderIdentity, lease.spec.leaseTransitions) == ("two", 1)
    two.stop()
    second.join(10)


def _lease(client: Client) -> Lease | None:
    try:
        return client.get(Lease, "cut", namespace="default")
    except ApiError:
        return None


def test_a_leader_that_cannot_renew_stops_before_another_begins(plane: ControlPlane):
    over_was = threading.Event()
    with plane.client() as client:
        leading = Leading(
            client, name="cut", namespace="default", me="one", duration_s=3, retry_s=0.2
        )

        def lead(over: threading.Event) -> None:
            over.wait()
            over_was.set()

        thread = threading.Thread(target=leading.run, args=(lead,))
        thread.start()
        wait_until(lambda: _lease(client))
        plane.api.kill()
        try:
            assert over_was.wait(20)
            thread.join(20)
            assert not thread.is_alive()
        finally:
            plane.api.start()
