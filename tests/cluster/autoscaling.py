"""What autoscaling takes on a test's cluster: the scaler as a process with its own account, behind
the API server's aggregation; controllers; and a kubelet that says when pods are ready."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Self

import yaml
from lightkube import ApiError, Client
from lightkube.resources.apiregistration_v1 import APIService
from lightkube.resources.apps_v1 import Deployment, ReplicaSet
from lightkube.resources.autoscaling_v2 import HorizontalPodAutoscaler
from lightkube.resources.core_v1 import Namespace, Pod
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tests.cluster.installing import NAMESPACE, Kubectl, Object, component
from tests.cluster.serving import become
from tests.cluster.support import bind, delete_pod, wait_until
from tests.servers.control_plane import ControlPlane
from tests.servers.process import free_port

API = "v1beta1.external.metrics.k8s.io"
ROOT = "/apis/external.metrics.k8s.io/v1beta1"
GATEWAY = "gateway"
REQUESTS = "gateway_requests_total"
WAITING = "gateway_requests_waiting"


@dataclass(frozen=True, slots=True)
class ScalerProcess:
    """One that runs, and where it answers."""

    process: subprocess.Popen[bytes]
    port: int
    plain: int
    log: Path


@contextmanager
def account(plane: ControlPlane, folder: Path, port: int = 0) -> Iterator[tuple[Kubectl, Path]]:
    """The rights that the chart gives the scaler, and a kubeconfig of who has them.

    port: which its registration names, which is for `registered` to make.
    """
    kubectl = Kubectl(plane, folder)
    with plane.client() as client, suppress(ApiError):
        client.create(Namespace.from_dict({"metadata": {"name": NAMESPACE}}))
    objects = _objects(port)
    # Before it answers it would count as not available, and be asked again ever less often.
    kubectl.apply([each for each in objects if each["kind"] != "APIService"])
    try:
        yield kubectl, _kubeconfig(plane, kubectl.token("modelcache-scaler"), folder)
    finally:
        kubectl.delete(objects)


def begin(config: Path, log: Path, *flags: str, port: int = 0) -> ScalerProcess:
    """`modelcache scaler`, once it answers. Whoever begins it ends it."""
    plain = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "modelcache.main", "scaler"),
                f"--kubeconfig={config}",
                f"--plain-listen=127.0.0.1:{plain}",
                f"--namespace={NAMESPACE}",
                "--linger=0s",
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    made = ScalerProcess(process, port, plain, log)
    try:
        wait_until(lambda: _answers(made), 90)
    except BaseException:
        end(made)
        raise
    return made


def end(made: ScalerProcess) -> int:
    """In order, as far as it follows; its code."""
    made.process.terminate()
    try:
        return made.process.wait(20)
    finally:
        made.process.kill()
        made.process.wait()


@contextmanager
def registered(plane: ControlPlane, folder: Path, *flags: str) -> Iterator[ScalerProcess]:
    """`modelcache scaler` with the rights that the chart gives it, registered as the chart does.

    Its Service is a name for this machine, as there are no pods that could answer.
    """
    port = free_port()
    with account(plane, folder, port) as (kubectl, config):
        made = begin(
            *(config, folder / "scaler.log"),
            *(f"--listen=127.0.0.1:{port}", "--service=modelcache-scaler", *flags),
            port=port,
        )
        try:
            kubectl.apply([each for each in _objects(port) if each["kind"] == "APIService"])
            with plane.client() as client:
                wait_until(lambda: _available(client) == "True", 90)
            yield made
        finally:
            code = end(made)
    assert code == 0, made.log.read_text()[-3000:]


def _objects(port: int) -> list[Object]:
    objects = [_on_this_machine(each, port) for each in component("scaler")]
    return [each for each in objects if each["kind"] != "Deployment"]


def _on_this_machine(found: Object, port: int) -> Object:
    if found["kind"] == "Service":
        return {**found, "spec": {"type": "ExternalName", "externalName": "localhost"}}
    if found["kind"] == "APIService":
        service = {**found["spec"]["service"], "port": port}
        return {**found, "spec": {**found["spec"], "service": service}}
    return found


def _kubeconfig(plane: ControlPlane, token: str, folder: Path) -> Path:
    found = yaml.safe_load(plane.kubeconfig().read_text())
    found["users"][0]["user"] = {"token": token}
    path = folder / "scaler.kubeconfig"
    path.write_text(yaml.safe_dump(found))
    return path


def _answers(made: ScalerProcess) -> bool:
    assert made.process.poll() is None, made.log.read_text()[-3000:]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{made.plain}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _available(client: Client) -> str:
    status = client.get(APIService, API).status
    conditions = (status.conditions if status is not None else None) or []
    return next((each.status for each in conditions if each.type == "Available"), "")


# Pods


class Kubelet:
    """Binds pods with a label, and says of each that it is ready `ready_s` after that."""

    def __init__(self, client: Client, *, app: str, node: str, ready_s: float) -> None:
        self._client = client
        self._app, self._node, self._ready_s = app, node, ready_s
        self._bound: dict[str, float] = {}
        self._ready: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def ready(self) -> int:
        """Pods that are."""
        return len(self._ready)

    @property
    def loading(self) -> int:
        """Pods that are bound, and not ready."""
        return len(self._bound) - len(self._ready)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            with suppress(ApiError):  # a pod that went meanwhile
                self._look()

    def _look(self) -> None:
        pods = list(self._client.list(Pod, namespace="default", labels={"app": self._app}))
        here = {str(pod.metadata.name) for pod in pods}
        self._bound = {name: at_s for name, at_s in self._bound.items() if name in here}
        self._ready &= here
        for pod in pods:
            name = str(pod.metadata.name)
            if pod.metadata.deletionTimestamp is not None:
                self._ready.discard(name)
                self._bound.pop(name, None)
                delete_pod(self._client, name)
            elif name not in self._bound:
                bind(self._client, pod, self._node)
                self._bound[name] = monotonic()
                become(self._client, name, ready=False)
            elif name not in self._ready and monotonic() - self._bound[name] >= self._ready_s:
                become(self._client, name, ready=True, after_s=self._ready_s)
                self._ready.add(name)


@dataclass
class Gateway:
    """What stands in front of a server: it counts requests that come, and those that wait."""

    port: int
    requests: Counter
    waiting: Gauge
    rate: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def demand(self, metric: str = REQUESTS, kind: str = "counter") -> dict[str, Any]:
        """As a ModelScale states it."""
        pods = {
            "selector": {"app": GATEWAY},
            "port": self.port,
            "metric": metric,
            "type": kind,
        }
        return {"intervalSeconds": 1, "pods": pods}


@contextmanager
def gateway(
    client: Client, node: str, kubelet: Kubelet | None = None, carries: float = 0.0
) -> Iterator[Gateway]:
    """One, with a pod. Requests come at its `rate`; each ready pod of the kubelet takes `carries`
    a second of those that wait."""
    registry = CollectorRegistry()
    requests = Counter(REQUESTS, "…", registry=registry)
    waiting = Gauge(WAITING, "…", registry=registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    made = Gateway(server.server_address[1], requests, waiting)

    def run() -> None:
        last_s, queue = monotonic(), 0.0
        while not made._over.wait(0.05):
            now_s = monotonic()
            came = made.rate * (now_s - last_s)
            requests.inc(came)
            served = kubelet.ready * carries * (now_s - last_s) if kubelet is not None else 0.0
            queue = max(0.0, queue + came - served)
            if kubelet is not None:  # else a test says itself what waits
                waiting.set(queue)
            last_s = now_s

    worker = threading.Thread(target=run)
    worker.start()
    pod = client.create(
        Pod.from_dict(
            {
                "metadata": {"name": GATEWAY, "namespace": "default", "labels": {"app": GATEWAY}},
                "spec": {"containers": [{"name": "main", "image": "example.test/gateway"}]},
            }
        )
    )
    bind(client, pod, node)
    become(client, GATEWAY, ready=True)
    try:
        yield made
    finally:
        made._over.set()
        worker.join()
        server.shutdown()
        thread.join()
        server.server_close()
        delete_pod(client, GATEWAY)


# Controllers


def make_deployment(client: Client, name: str, replicas: int) -> None:
    """A Deployment of a server."""
    labels = {"app": name}
    client.create(
        Deployment.from_dict(
            {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {"containers": [{"name": "main", "image": "example.test/server"}]},
                    },
                },
            }
        )
    )


def make_autoscaler(
    client: Client,
    name: str,
    metric: str,
    *,
    average: str = "1",
    least: int = 1,
    behavior: Mapping[str, Any] | None = None,
) -> None:
    """A HorizontalPodAutoscaler of the Deployment of that name, on an external metric."""
    client.create(
        HorizontalPodAutoscaler.from_dict(
            {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "minReplicas": least,
                    "maxReplicas": 100,
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                    "metrics": [
                        {
                            "type": "External",
                            "external": {
                                "metric": {
                                    "name": metric,
                                    "selector": {"matchLabels": {"model": name}},
                                },
                                "target": {"type": "AverageValue", "averageValue": average},
                            },
                        }
                    ],
                    "behavior": dict(behavior or {}),
                },
            }
        )
    )


def replicas_of(client: Client, name: str) -> int:
    """What its Deployment is asked to have."""
    spec = client.get(Deployment, name, namespace="default").spec
    return int(spec.replicas or 0) if spec is not None else 0


def conditions_of(client: Client, name: str) -> dict[str, tuple[str, str]]:
    """Status and reason of an autoscaler's conditions; empty ones of those it has not yet."""
    status = client.get(HorizontalPodAutoscaler, name, namespace="default").status
    conditions = (status.conditions if status is not None else None) or []
    found = {each.type: (each.status, each.reason or "") for each in conditions}
    return defaultdict(lambda: ("", ""), found)


def remove_server(client: Client, name: str) -> None:
    """The Deployment and all that was made of it."""
    for kind in (HorizontalPodAutoscaler, Deployment):
        with suppress(ApiError):
            client.delete(kind, name, namespace="default")
    for made in client.list(ReplicaSet, namespace="default", labels={"app": name}):
        client.delete(ReplicaSet, str(made.metadata.name), namespace="default")
    for pod in client.list(Pod, namespace="default", labels={"app": name}):
        delete_pod(client, str(pod.metadata.name))


@contextmanager
def controllers(plane: ControlPlane) -> Iterator[None]:
    """kube-controller-manager with what autoscaling takes; its loop turns every second."""
    parts = ("horizontal-pod-autoscaler", "deployment", "replicaset")
    names = ",".join(f"{part}-controller" for part in parts)
    with plane.running(
        "kube-controller-manager",
        f"--controllers={names}",
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--feature-gates=HPAScaleToZero=true",
        "--leader-elect=false",
        "--secure-port=0",
        "--concurrent-deployment-syncs=2",
    ):
        yield
