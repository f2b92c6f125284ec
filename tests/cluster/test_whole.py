"""Commands as they run in a cluster: agents on three nodes, the driver, the controller."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx2
import pytest
from lightkube import Client
from lightkube.resources.core_v1 import Event, Node, Pod

from modelcache.domain.refs import parse_ref
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.objects import ModelPrefetch, NodeModels
from modelcache.mounts import mounts_at
from tests.agent.nodes import Models, ref_to
from tests.cluster.support import delete_pod, events_of, make_node, make_pod, remove, wait_until
from tests.csi.driver import Asking
from tests.kernel.roots import needs_root, targets
from tests.servers.control_plane import ControlPlane
from tests.servers.nginx import Nginx
from tests.servers.process import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.kernel, needs_root, pytest.mark.timeout(240)]
NODES = ("n1", "n2", "n3")


@dataclass
class Commands:
    """Starts commands of ours, each with its own log."""

    folder: Path
    kubeconfig: Path
    pods: Path
    ports: dict[str, int]
    probes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def run(self, name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "modelcache.main", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def agent(self, node: str):
        members = "\n".join(f"127.0.0.1:{port}" for port in self.ports.values())
        return self.run(
            node,
            "agent",
            f"--node={node}",
            f"--store={self.folder}/{node}",
            f"--socket={self.socket(node)}",
            "--listen=",
            MODELCACHE_AGENT_VOLUME_ROOTS=str(self.pods),
            MODELCACHE_ACCESS_LOCAL="true",
            MODELCACHE_KUBERNETES_ENABLED="true",
            MODELCACHE_KUBERNETES_KUBECONFIG=str(self.kubeconfig),
            MODELCACHE_KUBERNETES_REPORT_S="0.2",
            MODELCACHE_PEERS_LISTEN=f"127.0.0.1:{self.ports[node]}",
            MODELCACHE_PEERS_MEMBERS=members,
            MODELCACHE_STORE_CHUNK_BYTES="4MiB",
        )

    def driver(self, node: str):
        return self.run(
            f"csi-{node}",
            "csi",
            f"--socket={self.folder}/csi-{node}.sock",
            f"--agent={self.socket(node)}",
            f"--node={node}",
        )

    def controller(self, name: str):
        self.probes[name] = free_port()
        return self.run(
            name,
            "controller",
            f"--kubeconfig={self.kubeconfig}",
            "--namespace=default",
            f"--identity={name}",
            f"--listen=127.0.0.1:{self.probes[name]}",
        )

    def socket(self, node: str) -> str:
        return f"{self.folder}/{node}.sock"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]


@pytest.fixture
def commands(plane: ControlPlane, client: Client, tmp_path: Path) -> Iterator[Commands]:
    for node in NODES:
        make_node(client, node, pool="gpu")
    with targets(tmp_path / "pods") as pods:
        yield Commands(tmp_path, plane.kubeconfig(), pods, {node: free_port() for node in NODES})
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    client.deletecollection(Event, namespace="default")
    for node in NODES:
        remove(client, Node, node)
        remove(client, NodeModels, node)
    remove(client, ModelPrefetch, "llama")


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


LEADS = re.compile(r"^modelcache_controller_leading (\S+)$", re.MULTILINE)


def asked(port: int, path: str) -> str:
    """What a controller says of itself."""
    return httpx2.get(f"http://127.0.0.1:{port}/{path}", trust_env=False).raise_for_status().text


def label_of(client: Client, node: str) -> str | None:
    labels = client.get(Node, node).metadata.labels or {}
    return next((value for name, value in labels.items() if name.startswith("warm.")), None)


def condition_of(client: Client, node: str) -> str | None:
    conditions = client.get(Node, node).status.conditions or []
    return next((each.status for each in conditions if each.type == names.AGENT_READY), None)


def test_a_declared_model_is_warm_on_its_nodes_and_mounted_at_once(
    client: Client, commands: Commands, models: Models
):
    proxy = models.add("m", 64 << 20)
    ref = str(ref_to(proxy, "m"))
    with ExitStack() as stack:
        running = {node: stack.enter_context(commands.agent(node)) for node in NODES}
        for name in ("controller-1", "controller-2"):
            stack.enter_context(commands.controller(name))
        stack.enter_context(commands.driver("n1"))
        wait_until(lambda: all(condition_of(client, node) == "True" for node in NODES), 60)
        client.create(
            ModelPrefetch.from_dict(
                {
                    "apiVersion": "modelcache.io/v1alpha1",
                    "kind": "ModelPrefetch",
                    "metadata": {"name": "llama"},
                    "spec": {"refs": [ref], "nodeSelector": {"pool": "gpu"}},
                }
            )
        )

        def ready() -> bool:
            status = client.get(ModelPrefetch, "llama").get("status") or {}
            return [c["status"] for c in status.get("conditions") or ()] == ["True"]

        wait_until(ready, 60)
        leading = [asked(port, "metrics") for port in commands.probes.values()]
        assert sorted(LEADS.findall("".join(leading))) == ["0.0", "1.0"]
        assert [asked(port, "readyz") for port in commands.probes.values()] == ["ok", "ok"]
        wait_until(lambda: all(label_of(client, node) == "100" for node in NODES))
        read = sum(get.span[1] - get.span[0] for get in proxy.gets("model.safetensors") if get.span)
        assert read <= 1.3 * (64 << 20), "three nodes have read the origin about once"

        # A pod of the model: kubelet asks the driver, and need not wait.
        make_pod(client, "p", node="n1", annotations={names.MODELS: f"{ref}=/models/m"})
        target = commands.pods / "weights"
        with grpc.insecure_channel(f"unix://{commands.folder}/csi-n1.sock") as channel:
            Asking(channel).publish(target, timeout_s=20.0, model=ref)
            assert (target / "model.safetensors").stat().st_size == 64 << 20
            told = wait_until(lambda: events_of(client, "p").get("ModelWarm"))
            assert parse_ref(ref).redacted() in told

            # The agent is killed: what is mounted stays, and the next one knows of it.
            running["n1"].send_signal(signal.SIGKILL)
            running["n1"].wait(30)
            assert (target / "model.safetensors").stat().st_size == 64 << 20
            stack.enter_context(commands.agent("n1"))
            wait_until(lambda: _unpublishes(channel, target), 60)
        assert not target.exists()

        # No longer declared, and the pod gone: nothing is wanted any more, all is still warm.
        delete_pod(client, "p")
        client.delete(ModelPrefetch, "llama")
        wait_until(lambda: _wanted(client) == 0, 60)
        assert all(label_of(client, node) == "100" for node in NODES)


def _unpublishes(channel: grpc.Channel, target: Path) -> bool:
    try:
        Asking(channel).unpublish(target)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the agent comes back
        return False
    return not mounts_at(target)


def _wanted(client: Client) -> int:
    reports = client.list(NodeModels)
    return sum(
        model.get("holders", 0)
        for report in reports
        for model in (report.get("status") or {}).get("models") or ()
    )
