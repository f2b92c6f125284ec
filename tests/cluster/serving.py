"""A server of one model on a test's cluster: nodes with devices, what agents tell, pods, requests.

Pods have no kubelet here; `Pods` says of them what kubelet would.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from lightkube import ApiError, Client
from lightkube.models.core_v1 import Container, PodSpec, ResourceRequirements
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Node, Pod
from lightkube.types import PatchType
from prometheus_client import CollectorRegistry, Counter, start_http_server

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.faces.kubernetes.objects import (
    ModelScale,
    ModelScaleCheckpoint,
    NodeModels,
    now_text,
)
from modelcache.faces.logs import Log
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.cluster import Cluster
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.life import Scaler
from modelcache.faces.scaler.recording import EVERY_S
from modelcache.faces.scaler.scraping import Scraper
from tests.cluster.support import bind, delete_pod, remove, wait_until

LLAMA = "s3://models/llama"
LLAMA_ID = "a" * 64
GPU = "nvidia.com/gpu"
SIZE = 140_000_000_000
METRIC = "server_requests_total"


def make_gpu_node(client: Client, name: str, gpus: int = 8) -> None:
    """A node that is ready and has devices."""
    client.create(Node(metadata=ObjectMeta(name=name, labels={"pool": "gpu"})))
    amounts = {GPU: str(gpus), "cpu": "64", "memory": "512Gi", "pods": "110"}
    status = {
        "allocatable": amounts,
        "capacity": amounts,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "",
                "lastTransitionTime": now_text(),
                "lastHeartbeatTime": now_text(),
            }
        ],
    }
    client.patch(Node.Status, name, {"status": status}, patch_type=PatchType.STRATEGIC)
    node = client.get(Node, name)  # the API server taints new nodes, as its admission does
    if node.spec is not None and node.spec.taints:
        client.patch(Node, name, {"spec": {"taints": None}}, patch_type=PatchType.MERGE)


def tell(client: Client, node: str, percent: int, **more: Any) -> None:
    """As the node's agent reports it of LLAMA."""
    metadata = {"name": node}
    made = {"apiVersion": "modelcache.io/v1alpha1", "kind": "NodeModels", "metadata": metadata}
    with suppress(ApiError):  # it is there already
        client.create(NodeModels.from_dict(made))
    model = {
        "ref": LLAMA,
        "wantedId": wanted_id(parse_ref(LLAMA)),
        "modelId": LLAMA_ID,
        "phase": "warm" if percent == 100 else "transferring",
        "percent": percent,
        "totalBytes": SIZE,
        "doneBytes": SIZE * percent // 100,
        "holders": 1,
        **more,
    }
    status = {"agent": {"ready": True}, "models": [model], "updatedAt": now_text()}
    client.patch(NodeModels.Status, node, {"status": status}, patch_type=PatchType.MERGE)


def remove_scales(client: Client, node: str) -> None:
    """All scales and what is kept of them, all pods of the default namespace, and the node."""
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    for kind in (ModelScale, ModelScaleCheckpoint):
        for item in client.list(kind, namespace="*"):
            client.delete(kind, item.metadata.name, namespace=item.metadata.namespace)
    remove(client, Node, node)
    remove(client, NodeModels, node)


def make_scale(client: Client, name: str, namespace: str = "default", **spec: Any) -> None:
    """A ModelScale of pods with the label app=NAME."""
    client.create(
        ModelScale.from_dict(
            {
                "apiVersion": "modelcache.io/v1alpha1",
                "kind": "ModelScale",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "model": LLAMA,
                    "selector": {"app": name},
                    "replica": {"gpus": 4, "requestsPerSecond": 2},
                    **spec,
                },
            }
        ),
        namespace=namespace,
    )


def status_of(client: Client, name: str, namespace: str = "default") -> dict[str, Any]:
    """What is written of a ModelScale."""
    found: dict[str, Any] = client.get(ModelScale, name, namespace=namespace).get("status") or {}
    return found


def make_server_pod(client: Client, name: str, *, app: str, node: str = "", gpus: int = 4) -> Pod:
    """A pod of a server; bound if a node is given."""
    amounts = {GPU: str(gpus)}
    pod = client.create(
        Pod(
            metadata=ObjectMeta(name=name, namespace="default", labels={"app": app}),
            spec=PodSpec(
                containers=[
                    Container(
                        name="main",
                        image="example.test/server",
                        resources=ResourceRequirements(limits=amounts, requests=amounts),
                    )
                ]
            ),
        )
    )
    if node:
        bind(client, pod, node)
    return pod


def become(
    client: Client, name: str, *, ready: bool, after_s: float = 0.0, address: str = "127.0.0.1"
) -> None:
    """What kubelet says of a pod that runs. after_s: between its being bound and its state now."""
    now = datetime.now(UTC)
    bound = (now - timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": bound},
        {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    ]
    status = {
        "phase": "Running",
        "conditions": conditions,
        "podIP": address,
        "podIPs": [{"ip": address}, {"$patch": "replace"}],
    }
    client.patch(
        Pod.Status,
        name,
        {"status": status},
        namespace="default",
        patch_type=PatchType.STRATEGIC,
    )


@dataclass
class Requests:
    """What the pods of a server say of their requests: one real endpoint for all of them."""

    port: int
    counter: Counter
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def demand(self) -> dict[str, Any]:
        """As a ModelScale states it."""
        return {"intervalSeconds": 1, "pods": {"port": self.port, "metric": METRIC}}


@contextmanager
def requests_served() -> Iterator[Requests]:
    """An endpoint of metrics on loopback."""
    registry = CollectorRegistry()
    counter = Counter(METRIC, "…", registry=registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield Requests(server.server_address[1], counter)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def scaling(
    client: Client,
    scraper: Scraper | None = None,
    *,
    log: Log | None = None,
    every_s: float = EVERY_S,
) -> Iterator[Scaler]:
    """A scaler that has listed everything. every_s: between its checkpoints, if it leads."""
    mine = scraper or Scraper()
    made = Scaler(
        Cluster(client),
        Demand(mine),
        CheckpointStore(client, log=log),
        checkpoint_every_s=every_s,
        log=log,
    )
    made.start()
    try:
        wait_until(lambda: made.not_ready() is None)
        yield made
    finally:
        made.stop()
        mine.close()
