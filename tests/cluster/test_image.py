"""The image as it is built, and the chart's agents as a real kubelet runs them from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap, Node, Pod

from modelcache.faces.kubernetes.objects import NodeModels
from modelcache.mounts import mounts_at
from tests.agent.nodes import Models, ref_to
from tests.cluster import image
from tests.cluster.installing import NAMESPACE, Kubectl, rendered
from tests.cluster.kubelet import (
    DRIVER,
    IMAGE,
    MARKS,
    Containerd,
    Kubelet,
    image_archive,
    registered,
)
from tests.cluster.support import remove, wait_until
from tests.cluster.test_kubelet import drivers_of
from tests.servers.control_plane import ControlPlane
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable, free_port

pytestmark = [*MARKS, pytest.mark.timeout(1200)]
NODE = "real-2"
WAIT_S = 180.0
PARTS = {"agent", "csi", "holder"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return image.build(tmp_path_factory.mktemp("image"))
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def kubelet(
    plane: ControlPlane, client: Client, archive: Path, tmp_path: Path
) -> Iterator[Kubelet]:
    with ExitStack() as stack:
        try:
            containerd = stack.enter_context(Containerd())
            containerd.load(image_archive(tmp_path / "image.tar"))
            containerd.load(archive)
            made = stack.enter_context(Kubelet(plane, containerd, NODE))
            for program, *flags in (
                ("kube-controller-manager", "--controllers=daemonset-controller"),
                ("kube-scheduler",),
            ):
                always = ("--leader-elect=false", f"--secure-port={free_port()}")
                stack.enter_context(plane.running(program, *always, *flags))
        except ServerUnavailable as error:
            pytest.skip(str(error))
        stack.callback(remove, client, NodeModels, NODE)
        stack.callback(remove, client, Node, NODE)
        yield made


@pytest.fixture
def agents(plane: ControlPlane, client: Client, kubelet: Kubelet, tmp_path: Path) -> Iterator[str]:
    """The chart's DaemonSet with its own account, from our image; its pod's name."""
    kubectl = Kubectl(plane, tmp_path)
    port = str(plane.api.port)
    values = {
        "image.repository": image.NAME.partition(":")[0],
        "image.tag": "1",
        "kubeletDir": str(kubelet.root),
        "store.hostPath": str(tmp_path / "store"),
        "socketDir": str(tmp_path / "run"),
        "agent.hostNetwork": True,  # there are no network plugins here, and no Services
        "agent.apiPort": free_port(),
        "agent.env": [
            {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
            {"name": "KUBERNETES_SERVICE_PORT", "value": port},
        ],
        "agent.tolerations": [{"operator": "Exists"}],
        "config": "[access]\nlocal = true\n",
        "csi.registrar.image": IMAGE,  # which sleeps: the test registers
        "peers.enabled": False,
        "webhook.enabled": False,
        "controller.enabled": False,
    }
    objects = rendered(values)
    namespace: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE},
    }
    kubectl.apply([namespace, *objects])
    authority = ConfigMap(
        metadata=ObjectMeta(name="kube-root-ca.crt", namespace=NAMESPACE),
        data={"ca.crt": plane.api.certificates.ca_file.read_text()},
    )
    client.apply(authority, field_manager="test", force=True)
    try:
        yield wait_until(lambda: pod_of(client), WAIT_S)
    finally:
        kubectl.delete(objects)
        for name in filter(None, [pod_of(client)]):  # there is no garbage collector here
            client.delete(Pod, name, namespace=NAMESPACE, grace_period=1)
        wait_until(lambda: not list(client.list(Pod, namespace=NAMESPACE)), WAIT_S)


def pod_of(client: Client) -> str:
    found = [each.metadata.name for each in client.list(Pod, namespace=NAMESPACE)]
    return str(found[0]) if found else ""


def running(client: Client, name: str) -> dict[str, bool]:
    """Which containers of a pod are ready."""
    status = client.get(Pod, name, namespace=NAMESPACE).status
    return {each.name: each.ready for each in (status.containerStatuses if status else None) or []}


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


def test_the_charts_agent_runs_from_the_image_and_mounts_for_pods(
    client: Client, kubelet: Kubelet, agents: str, models: Models
):
    wait_until(
        lambda: {n for n, ready in running(client, agents).items() if ready} >= PARTS, WAIT_S
    )
    socket = kubelet.root / "plugins" / DRIVER / "csi.sock"
    wait_until(socket.exists, WAIT_S)
    ref = str(ref_to(models.add("m"), "m"))
    with registered(socket, kubelet) as told_kubelet:
        wait_until(lambda: told_kubelet, WAIT_S)
        wait_until(lambda: DRIVER in drivers_of(client, NODE), WAIT_S)
        client.create(
            Pod.from_dict(
                {
                    "metadata": {"name": "reader", "namespace": "default"},
                    "spec": {
                        "hostNetwork": True,
                        "enableServiceLinks": False,
                        "terminationGracePeriodSeconds": 1,
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [
                            {
                                "name": "server",
                                "image": IMAGE,
                                "imagePullPolicy": "Never",
                                "volumeMounts": [{"name": "m", "mountPath": "/m"}],
                                "readinessProbe": {
                                    "exec": {"command": ["/bin/sha256sum", "/m/model.safetensors"]},
                                    "periodSeconds": 1,
                                },
                            }
                        ],
                        "volumes": [
                            {
                                "name": "m",
                                "csi": {
                                    "driver": DRIVER,
                                    "readOnly": True,
                                    "volumeAttributes": {"model": ref},
                                },
                            }
                        ],
                    },
                }
            )
        )

        def reads() -> bool:
            status = client.get(Pod, "reader", namespace="default").status
            return any(each.ready for each in (status.containerStatuses if status else None) or [])

        wait_until(reads, WAIT_S)
        pod = client.get(Pod, "reader", namespace="default")
        target = kubelet.root / f"pods/{pod.metadata.uid}/volumes/kubernetes.io~csi/m/mount"
        assert mounts_at(target)[-1].read_only
        told = wait_until(lambda: node_models(client), WAIT_S)
        assert told["models"][0]["percent"] == 100, json.dumps(told)
        client.delete(Pod, "reader", namespace="default")
        wait_until(lambda: not mounts_at(target), WAIT_S)
        wait_until(lambda: not list(client.list(Pod, namespace="default")), WAIT_S)


def node_models(client: Client) -> dict[str, Any]:
    """What the agent says of its node, with the rights that its account has."""
    for each in client.list(NodeModels):
        status: dict[str, Any] = each.get("status") or {}
        if each.metadata.name == NODE and status.get("models"):
            return status
    return {}
