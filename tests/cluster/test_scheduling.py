"""The real kube-scheduler: where it puts pods by what agents predict, and when nodes are free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightkube import ApiError, Client
from lightkube.models.core_v1 import Taint
from lightkube.resources.core_v1 import Node, Pod
from lightkube.types import PatchType

from modelcache.faces.controller.controlling import Controlling
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.objects import ModelPrefetch, ModelScale, NodeModels
from modelcache.faces.scaler.buffers import CapacityBuffer
from modelcache.faces.scaler.life import Scaler, plainly
from modelcache.faces.scaler.plain import create_plain_app
from modelcache.faces.scaler.writing import Writing
from modelcache.faces.webhook.serving import bind
from tests.cluster.autoscaling import WAITING, gateway
from tests.cluster.serving import LLAMA, make_gpu_node, make_scale, scaling, tell
from tests.cluster.support import delete_pod, make_pod, remove, wait_until
from tests.servers.control_plane import ControlPlane
from tests.servers.process import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
NODES = ("s1", "s2", "s3")
TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/modelcache"


@pytest.fixture
def nodes(client: Client) -> Iterator[tuple[str, ...]]:
    for name in NODES:
        make_gpu_node(client, name)
    yield NODES
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    for item in client.list(ModelScale, namespace="*"):
        client.delete(ModelScale, item.metadata.name, namespace=item.metadata.namespace)
    for item in client.list(ModelPrefetch):
        remove(client, ModelPrefetch, item.metadata.name)
    for name in NODES:
        remove(client, Node, name)
        remove(client, NodeModels, name)


@contextmanager
def scheduler(plane: ControlPlane, folder: Path, extender: int = 0) -> Iterator[None]:
    """extender: the port of one."""
    config: dict[str, Any] = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(plane.kubeconfig())},
        "leaderElection": {"leaderElect": False},
    }
    if extender:
        config["extenders"] = [
            {
                "urlPrefix": f"http://127.0.0.1:{extender}",
                "prioritizeVerb": "prioritize",
                "weight": 100,
                "nodeCacheCapable": True,
                "ignorable": True,
                "httpTimeout": "5s",
            }
        ]
    path = folder / "scheduler.yaml"
    path.write_text(yaml.safe_dump(config))
    with plane.running("kube-scheduler", f"--config={path}", "--secure-port=0"):
        yield


@contextmanager
def asked(scaler: Scaler) -> Iterator[int]:
    """The port on which a scheduler may ask."""
    listener = bind("127.0.0.1", 0)
    app = create_plain_app(scaler.outlooks, scaler.metrics, scaler.not_ready)
    begun, ending = threading.Event(), threading.Event()

    async def serve() -> None:
        async with plainly(app, listener):
            begun.set()
            await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert begun.wait(20)
    try:
        yield listener.getsockname()[1]
    finally:
        ending.set()
        thread.join()


def node_of(client: Client, pod: str) -> str | None:
    spec = client.get(Pod, pod, namespace="default").spec
    return spec.nodeName if spec is not None else None


@pytest.mark.usefixtures("nodes")
def test_pods_go_where_their_models_are_ready_soonest(
    client: Client, plane: ControlPlane, tmp_path: Path
):
    """Twenty of them, which by themselves would be spread over the three nodes."""
    tell(client, "s1", 20, ready={"p50Seconds": 200, "p90Seconds": 250})
    tell(client, "s2", 80, ready={"p50Seconds": 10, "p90Seconds": 15})
    with scaling(client) as scaler, asked(scaler) as port, scheduler(plane, tmp_path, port):
        for number in range(20):
            make_pod(client, f"p{number}", annotations={names.MODELS: LLAMA})
        found = [wait_until(lambda n=n: node_of(client, f"p{n}")) for n in range(20)]
        assert set(found) == {"s2"}
        counted = scaler.metrics.requests.labels("scheduler", "200")._value.get()
        assert counted >= 20


@pytest.mark.usefixtures("nodes")
def test_pods_are_scheduled_while_nobody_answers(
    client: Client, plane: ControlPlane, tmp_path: Path
):
    with scheduler(plane, tmp_path, free_port()):
        make_pod(client, "p", annotations={names.MODELS: LLAMA})
        assert wait_until(lambda: node_of(client, "p")) in NODES


@contextmanager
def controlling(plane: ControlPlane) -> Iterator[None]:
    over = threading.Event()
    with plane.client() as client:
        thread = threading.Thread(target=Controlling(client).lead, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)


def taints_of(client: Client, node: str) -> list[str]:
    spec = client.get(Node, node).spec
    return [taint.key for taint in (spec.taints if spec is not None else None) or []]


def declare(client: Client, **spec: Any) -> None:
    client.create(
        ModelPrefetch.from_dict(
            {
                "apiVersion": "modelcache.io/v1alpha1",
                "kind": "ModelPrefetch",
                "metadata": {"name": "pool"},
                "spec": {"refs": [LLAMA], "nodeSelector": {"pool": "gpu"}, **spec},
            }
        )
    )


def hold(client: Client, node: str) -> None:
    """As the node group of an autoscaler does with its new nodes."""
    taints = [Taint(key="other", effect="NoSchedule"), Taint(key=TAINT, effect="NoSchedule")]
    change = {"spec": {"taints": [taint.to_dict() for taint in taints]}}
    client.patch(Node, node, change, patch_type=PatchType.MERGE)


@pytest.mark.usefixtures("nodes")
def test_a_new_node_takes_pods_when_it_has_what_is_declared(
    client: Client, plane: ControlPlane, tmp_path: Path
):
    for name in NODES:
        hold(client, name)
    declare(client, holdNodes=True)
    tell(client, "s1", 60)
    tell(client, "s2", 60)
    tolerations = [{"key": "other", "operator": "Exists"}]
    with controlling(plane), scheduler(plane, tmp_path):
        client.create(
            Pod.from_dict(
                {
                    "metadata": {"name": "p", "namespace": "default"},
                    "spec": {
                        "containers": [{"name": "main", "image": "example.test/server"}],
                        "tolerations": tolerations,
                    },
                }
            )
        )
        tell(client, "s1", 100)
        wait_until(lambda: taints_of(client, "s1") == ["other"])
        assert wait_until(lambda: node_of(client, "p")) == "s1"
        assert TAINT in taints_of(client, "s2")  # it still fetches
        assert TAINT in taints_of(client, "s3")  # it has no agent yet
        client.patch(
            ModelPrefetch, "pool", {"spec": {"holdTimeout": "0s"}}, patch_type=PatchType.MERGE
        )
        wait_until(lambda: taints_of(client, "s2") == ["other"])


@pytest.mark.usefixtures("nodes")
def test_without_a_declaration_an_agent_is_enough(client: Client, plane: ControlPlane):
    hold(client, "s1")
    declare(client)  # which wants the model, and holds nobody
    with controlling(plane):
        tell(client, "s1", 0)
        wait_until(lambda: taints_of(client, "s1") == ["other"])


# Buffers


@pytest.mark.usefixtures("nodes", "capacity_buffers")
def test_a_buffer_has_as_many_places_as_should_be_warm(client: Client):
    """All else of it is its owner's."""
    ref = {"apiGroup": "apps", "kind": "Deployment", "name": "llama"}
    made = {
        "apiVersion": "autoscaling.x-k8s.io/v1beta1",
        "kind": "CapacityBuffer",
        "metadata": {"name": "llama", "namespace": "default"},
        "spec": {"scalableRef": ref, "replicas": 99},
    }
    spoilt = {**made, "spec": {**made["spec"], "replicas": -1}}
    with pytest.raises(ApiError, match=r"spec\.replicas.*greater than or equal to 0"):
        client.create(CapacityBuffer.from_dict(spoilt))  # whoever defined it has thought of that
    client.create(CapacityBuffer.from_dict(made), field_manager="somebody")
    with gateway(client, "s1") as front, scaling(client) as scaler:
        front.waiting.set(10)
        make_scale(client, "llama", demand=front.demand(WAITING, "gauge"), capacityBuffer="llama")
        writing = Writing(client, scaler.cluster, scaler.outlooks, scaler.recording)

        def replicas() -> Any:
            view = scaler.cluster.view()
            assert view is not None
            writing.look(view)
            return client.get(CapacityBuffer, "llama", namespace="default")["spec"]

        wait_until(lambda: replicas()["replicas"] == 0)  # steady demand needs none
        assert replicas()["scalableRef"] == ref
        fields = client.get(CapacityBuffer, "llama", namespace="default").metadata.managedFields
        (ours,) = [each for each in fields or [] if each.manager == names.FIELD_MANAGER]
        assert ours.operation == "Apply"
