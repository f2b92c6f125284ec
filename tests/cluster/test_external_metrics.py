"""External metrics behind a real API server: who may have them, and what autoscalers make of them.

Seconds stand for minutes: pods take some seconds to be ready, and autoscalers look every second.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from lightkube import Client
from lightkube.resources.core_v1 import ConfigMap, Node, Pod, ServiceAccount
from lightkube.types import PatchType

from modelcache.faces.kubernetes.objects import ModelScale, NodeModels
from tests.cluster.autoscaling import (
    ROOT,
    WAITING,
    Kubelet,
    ScalerProcess,
    conditions_of,
    controllers,
    gateway,
    make_autoscaler,
    make_deployment,
    registered,
    remove_server,
    replicas_of,
)
from tests.cluster.installing import Kubectl
from tests.cluster.serving import become, make_gpu_node, make_scale, tell
from tests.cluster.support import delete_pod, remove, wait_until
from tests.servers.certificates import Authority, Certificates
from tests.servers.control_plane import FRONT_PROXY, ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]
NODE = "a1"
USER = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
AT_ONCE = {
    "stabilizationWindowSeconds": 0,
    "policies": [
        {"type": "Percent", "value": 1000, "periodSeconds": 1},
        {"type": "Pods", "value": 100, "periodSeconds": 1},
    ],
}


@pytest.fixture(scope="module")
def scaler(
    plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScalerProcess]:
    with plane.client() as client:
        make_gpu_node(client, NODE)
        with registered(plane, tmp_path_factory.mktemp("scaler")) as made:
            yield made
        remove(client, NodeModels, NODE)
        remove(client, Node, NODE)


@pytest.fixture
def kubectl(plane: ControlPlane, tmp_path: Path) -> Kubectl:
    return Kubectl(plane, tmp_path)


@pytest.fixture(autouse=True)
def tidy(scaler: ScalerProcess, client: Client) -> Iterator[None]:
    assert scaler.process.poll() is None
    tell(client, NODE, 100)
    yield
    for name in ("llama", "backlog"):
        remove_server(client, name)
    for item in client.list(ModelScale, namespace="*"):
        client.delete(ModelScale, item.metadata.name, namespace=item.metadata.namespace)
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))


def value(kubectl: Kubectl, metric: str, selector: str) -> str:
    path = f"{ROOT}/namespaces/default/{metric}?labelSelector={selector}"
    (item,) = json.loads(kubectl("get", "--raw", path))["items"]
    return str(item["value"])


def gauge_of(client: Client, port: int, **spec: Any) -> None:
    """A ModelScale whose recommendation is what the gateway says waits."""
    pods = {"selector": {"app": "gateway"}, "port": port, "metric": WAITING, "type": "gauge"}
    demand = {"intervalSeconds": 1, "pods": pods}
    replica = {"requestsPerSecond": 1}
    costs = {"late": 1, "idle": 1000}  # nothing on top of what is
    make_scale(client, "llama", demand=demand, replica=replica, costs=costs, **spec)


# What is answered


@pytest.mark.usefixtures("scaler")
def test_numbers_come_through_the_api_server(client: Client, kubectl: Kubectl):
    found = json.loads(kubectl("get", "--raw", ROOT))
    names = [each["name"] for each in found["resources"]]
    assert "modelcache_recommended_replicas" in names
    assert {each["kind"] for each in found["resources"]} == {"ExternalMetricValueList"}
    groups = [each["name"] for each in json.loads(kubectl("get", "--raw", "/apis"))["groups"]]
    assert "external.metrics.k8s.io" in groups
    make_scale(client, "llama")
    wait_until(lambda: _is(kubectl, "modelcache_warm_slots", "model%3Dllama", "2"))
    assert value(kubectl, "modelcache_warm_nodes", "model+in+(llama,other)") == "1"
    next_one = "model%3Dllama,tier%3Dnext,quantile%3D0.9"
    assert value(kubectl, "modelcache_predicted_start_seconds", next_one) == "60"


def _is(kubectl: Kubectl, metric: str, selector: str, wanted: str) -> bool:
    try:
        return value(kubectl, metric, selector) == wanted
    except AssertionError:
        return False


@pytest.mark.usefixtures("scaler")
def test_what_cannot_be_answered_says_why(client: Client, kubectl: Kubectl):
    for name in ("llama", "backlog"):
        make_scale(client, name)
    wait_until(lambda: _is(kubectl, "modelcache_warm_slots", "model%3Dbacklog", "2"))
    for metric, selector, words in (
        ("modelcache_warm_slots", "model%3Dmistral", "NotFound"),
        ("modelcache_warm_slots", "model%3Dllama,tier%3Dwarm", "NotFound"),
        ("other_metric", "model%3Dllama", "there is no metric other_metric"),
        ("modelcache_warm_slots", "", "several series"),
        ("modelcache_predicted_start_seconds", "model%3Dllama", "tier=warm,quantile=0.5"),
        ("modelcache_warm_slots", "model%3D%3D%3D", "no label selector"),
        ("modelcache_recommended_replicas", "model%3Dllama", "ServiceUnavailable|not known now"),
    ):
        with pytest.raises(AssertionError, match=words):
            value(kubectl, metric, selector)


# Who asks


def ask(
    scaler: ScalerProcess,
    path: str,
    headers: dict[str, str],
    shown: Certificates | None = None,
) -> tuple[int, dict[str, Any]]:
    """As somebody who does not come through the API server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is us who are asked
    if shown is not None:
        context.load_cert_chain(shown.cert_file, shown.key_file)
    connection = HTTPSConnection("127.0.0.1", scaler.port, context=context, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


PATH = f"{ROOT}/namespaces/default/modelcache_warm_slots?labelSelector=model%3Dllama"


@pytest.mark.parametrize("path", [ROOT, PATH])
def test_nobody_is_believed_for_what_they_write_in_headers(scaler: ScalerProcess, path: str):
    status, body = ask(scaler, path, USER)
    assert (status, body["reason"]) == (401, "Unauthorized")
    assert "no client certificate" in body["message"]


def test_a_certificate_counts_only_with_the_front_proxys_name(
    scaler: ScalerProcess, plane: ControlPlane, client: Client, kubectl: Kubectl
):
    make_scale(client, "llama")
    wait_until(lambda: _is(kubectl, "modelcache_warm_slots", "model%3Dllama", "2"))
    authority = plane.api.front_proxies
    other = authority.issue("other", "kubelet", ("DNS:kubelet",), usage="clientAuth")
    status, body = ask(scaler, PATH, USER, other)
    assert status == 401
    assert "not the front proxy's" in body["message"]
    # With it, what is said in headers does count: so refusals above are for the right reason.
    status, body = ask(scaler, PATH, USER, plane.api.front_proxy)
    assert (status, body["items"][0]["value"]) == (200, "2")
    assert ask(scaler, PATH, {}, plane.api.front_proxy)[0] == 401
    nobody = {"X-Remote-User": "nobody", "X-Remote-Group": "system:authenticated"}
    status, body = ask(scaler, PATH, nobody, plane.api.front_proxy)
    assert (status, body["reason"]) == (403, "Forbidden")
    assert "nobody may not list modelcache_warm_slots" in body["message"]


def test_a_certificate_of_another_authority_gets_no_connection(
    scaler: ScalerProcess, tmp_path: Path
):
    forged = Authority(tmp_path).issue(
        "forged", FRONT_PROXY, (f"DNS:{FRONT_PROXY}",), usage="clientAuth"
    )
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(scaler, PATH, USER, forged)


def test_another_authority_of_the_front_proxy_is_followed(
    scaler: ScalerProcess, plane: ControlPlane, client: Client, tmp_path: Path
):
    """API servers publish it; those that are replaced bring their own, beside the one before."""
    make_scale(client, "llama")
    next_one = Authority(tmp_path)
    shown = next_one.issue("next", FRONT_PROXY, (f"DNS:{FRONT_PROXY}",), usage="clientAuth")

    def answered(certificates: Certificates) -> int:
        try:
            return ask(scaler, PATH, USER, certificates)[0]
        except (ssl.SSLError, ConnectionError):
            return 0

    assert answered(shown) == 0
    name, namespace = "extension-apiserver-authentication", "kube-system"
    key = "requestheader-client-ca-file"
    before = client.get(ConfigMap, name, namespace=namespace).data or {}
    both = {key: f"{before[key]}{next_one.ca_file.read_text()}"}
    client.patch(ConfigMap, name, {"data": both}, namespace=namespace, patch_type=PatchType.MERGE)
    wait_until(lambda: answered(shown) == 200)
    wait_until(lambda: answered(plane.api.front_proxy) == 200)
    client.patch(ConfigMap, name, {"data": before}, namespace=namespace, patch_type=PatchType.MERGE)
    wait_until(lambda: answered(shown) == 0)
    wait_until(lambda: answered(plane.api.front_proxy) == 200)


def test_callers_of_the_api_server_need_the_right(
    plane: ControlPlane, client: Client, kubectl: Kubectl
):
    make_scale(client, "llama")
    client.apply(
        ServiceAccount.from_dict({"metadata": {"name": "reader", "namespace": "default"}}),
        field_manager="test",
    )
    token = kubectl.token("reader", namespace="default")

    def status() -> int:
        context = ssl.create_default_context(cafile=str(plane.api.certificates.ca_file))
        connection = HTTPSConnection("127.0.0.1", plane.api.port, context=context, timeout=10)
        try:
            connection.request("GET", PATH, headers={"Authorization": f"Bearer {token}"})
            return connection.getresponse().status
        finally:
            connection.close()

    assert status() == 403
    rights = _may_read("reader", "modelcache_warm_slots")
    kubectl.apply(rights)
    wait_until(lambda: status() == 200, 60)
    kubectl.delete(rights)


def _may_read(account: str, metric: str) -> list[dict[str, Any]]:
    group = "rbac.authorization.k8s.io"
    metadata = {"name": "reads-metrics", "namespace": "default"}
    rule = {"apiGroups": ["external.metrics.k8s.io"], "resources": [metric], "verbs": ["list"]}
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "reads-metrics"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
        },
    ]


# What an autoscaler does with it


def test_an_autoscaler_has_the_replicas_that_are_recommended(plane: ControlPlane, client: Client):
    """Also from 20 to 22, which is within the tolerance that autoscalers have by default."""
    make_deployment(client, "llama", 1)
    with gateway(client, NODE) as front:
        front.waiting.set(20)
        gauge_of(client, front.port)
        behavior = {"scaleUp": {**AT_ONCE, "tolerance": "0"}, "scaleDown": AT_ONCE}
        make_autoscaler(client, "llama", "modelcache_recommended_replicas", behavior=behavior)
        with controllers(plane), Kubelet(client, app="llama", node=NODE, ready_s=0.5):
            wait_until(lambda: replicas_of(client, "llama") == 20, 60)
            found = ("True", "ValidMetricFound")  # the status is written after the replicas
            wait_until(lambda: conditions_of(client, "llama")["ScalingActive"] == found, 60)
            front.waiting.set(22)
            wait_until(lambda: replicas_of(client, "llama") == 22)
            front.waiting.set(3)
            wait_until(lambda: replicas_of(client, "llama") == 3)


def test_what_nobody_can_vouch_for_scales_nothing_down(
    scaler: ScalerProcess, plane: ControlPlane, client: Client
):
    make_deployment(client, "llama", 1)
    with gateway(client, NODE) as front:
        front.waiting.set(7)
        gauge_of(client, front.port)
        behavior = {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE}
        make_autoscaler(client, "llama", "modelcache_recommended_replicas", behavior=behavior)
        with controllers(plane), Kubelet(client, app="llama", node=NODE, ready_s=0.5):
            wait_until(lambda: replicas_of(client, "llama") == 7, 60)
            # From now on nobody answers there, and what it would say is less.
            become(client, "gateway", ready=True, address="127.0.0.2")
            wait_until(lambda: "127.0.0.2" in scaler.log.read_text())
            front.waiting.set(1)
            wait_until(
                lambda: (
                    conditions_of(client, "llama")["ScalingActive"]
                    == ("False", "FailedGetExternalMetric")
                ),
                60,
            )
            assert replicas_of(client, "llama") == 7
            become(client, "gateway", ready=True)
            wait_until(lambda: replicas_of(client, "llama") == 1, 60)


def test_a_load_from_zero_is_not_taken_back_while_it_lasts(plane: ControlPlane, client: Client):
    """Requests come once, and wait; the autoscaler would go down as soon as it is told to."""
    make_deployment(client, "llama", 1)
    with (
        Kubelet(client, app="llama", node=NODE, ready_s=12) as kubelet,
        gateway(client, NODE) as front,
    ):
        make_scale(
            client,
            "llama",
            demand=front.demand(),
            replica={"requestsPerSecond": 2},
            costs={"late": 1, "idle": 1000},
        )
        behavior = {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE}
        make_autoscaler(
            client, "llama", "modelcache_recommended_replicas", least=0, behavior=behavior
        )
        with controllers(plane):
            wait_until(lambda: replicas_of(client, "llama") == 0, 60)
            wait_until(lambda: conditions_of(client, "llama")["ScaledToZero"][0] == "True")
            front.rate = 5
            wait_until(lambda: kubelet.loading >= 3, 60)
            front.rate = 0
            least = []
            wait_until(lambda: least.append(replicas_of(client, "llama")) or kubelet.ready >= 3, 60)
            assert min(least) >= 3  # what it takes; one that came on top may go
            wait_until(lambda: replicas_of(client, "llama") == 0, 60)


def test_a_backlog_overshoots_where_a_recommendation_does_not(plane: ControlPlane, client: Client):
    """24 requests a second for replicas of 2: it takes 12, a little more for what has queued."""
    most = {
        metric: _most_replicas(plane, client, metric)
        for metric in ("modelcache_demand", "modelcache_recommended_replicas")
    }
    assert most["modelcache_recommended_replicas"] in range(12, 17)
    assert most["modelcache_demand"] >= 24


def _most_replicas(plane: ControlPlane, client: Client, metric: str) -> int:
    """Replicas at the most, until 12 are ready. Pods take ten rounds of doubling to be ready."""
    backlog = metric == "modelcache_demand"
    name = "backlog" if backlog else "llama"
    make_deployment(client, name, 1)
    double = {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 2}],
    }
    most = 0
    with (
        Kubelet(client, app=name, node=NODE, ready_s=10) as kubelet,
        gateway(client, NODE, kubelet, carries=2) as front,
        controllers(plane),
    ):
        wait_until(lambda: kubelet.ready == 1, 60)
        front.rate = 2
        demand = front.demand(WAITING, "gauge") if backlog else front.demand()
        costs = {"late": 1, "idle": 1}
        ready = {"warm": 10, "cold": 10}
        make_scale(client, name, demand=demand, costs=costs, readySeconds=ready, delaySeconds=2)
        make_autoscaler(
            client, name, metric, average="4" if backlog else "1", behavior={"scaleUp": double}
        )
        wait_until(lambda: conditions_of(client, name)["ScalingActive"][0] == "True", 60)
        front.rate = 24
        until_s = monotonic() + 90
        while kubelet.ready < 12:
            most = max(most, replicas_of(client, name))
            assert monotonic() < until_s
    remove_server(client, name)
    client.delete(ModelScale, name, namespace="default")
    return max(most, 0)


def test_what_an_agent_tells_is_answered_without_anybody_asking_it(
    client: Client, kubectl: Kubectl
):
    make_scale(client, "llama")
    wait_until(lambda: _is(kubectl, "modelcache_warm_nodes", "model%3Dllama", "1"))
    tell(client, NODE, 50)
    wait_until(lambda: _is(kubectl, "modelcache_warm_nodes", "model%3Dllama", "0"))
