"""What a real API server makes of our answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from copy import deepcopy
from time import monotonic, sleep
from typing import Any

import pytest
from lightkube import ApiError, Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from modelcache.domain.refs import parse_ref
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.objects import NodeModels
from modelcache.faces.webhook.tls import CertificateFiles
from modelcache.faces.webhook.warmth import ClusterWarmth
from tests.cluster.support import remove, wait_until
from tests.faces.webhook.conftest import Register
from tests.faces.webhook.servers import Hook, hook
from tests.faces.webhook.support import LLAMA, LLAMA_ID, LLAMA_VOLUME, Known, pod
from tests.faces.webhook.test_kserve import PODS as KSERVE_PODS
from tests.servers.certificates import Certificates

pytestmark = pytest.mark.cluster

ASKED = f"{LLAMA}=/models/llama"
MOUNT = {"name": LLAMA_VOLUME, "mountPath": "/models/llama", "readOnly": True}
SEEN_S = 20.0  # until an API server has noticed a new configuration


def bundle(certificates: Certificates) -> str:
    return base64.b64encode(certificates.ca_file.read_bytes()).decode()


def create(client: Client, namespace: str, written: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The pod as the API server keeps it."""
    written = {**written, "metadata": {**written["metadata"], "namespace": namespace, **more}}
    return client.create(Pod.from_dict(written)).to_dict()


def wait_called(client: Client, namespace: str) -> None:
    """Until the API server knows of the webhook, which refuses what nobody else would."""
    probe = pod("probe://x")
    probe["metadata"]["namespace"] = namespace
    until_s = monotonic() + SEEN_S
    while True:
        try:
            client.create(Pod.from_dict(probe), dry_run=True)
        except ApiError as error:
            if "unknown scheme 'probe'" in str(error):
                return
            raise
        assert monotonic() < until_s
        sleep(0.05)


@pytest.fixture
def running(certificates: Certificates) -> Iterator[Hook]:
    source = CertificateFiles(certificates.cert_file, certificates.key_file)
    with hook(source, Known({LLAMA: [LLAMA_ID]})) as found:
        yield found


@pytest.fixture
def called(
    running: Hook, register: Register, certificates: Certificates, client: Client, namespace: str
) -> Hook:
    register(running.url, bundle(certificates), again="IfNeeded")
    wait_called(client, namespace)
    return running


@pytest.mark.usefixtures("called")
def test_a_pod_gets_its_model(client: Client, namespace: str):
    containers = [{"name": name, "image": "example.test/x"} for name in ("main", "side")]
    spec = {"containers": containers, "initContainers": [{**containers[0], "name": "setup"}]}
    found = create(client, namespace, pod(ASKED, priority="70", spec=spec))
    (volume,) = (v for v in found["spec"]["volumes"] if v["name"] == LLAMA_VOLUME)
    assert volume["csi"] == {
        "driver": "csi.modelcache.io",
        "readOnly": True,
        "volumeAttributes": {"model": LLAMA, "priority": "70"},
    }
    for each in (*found["spec"]["containers"], *found["spec"]["initContainers"]):
        assert each["volumeMounts"] == [MOUNT]
    terms = found["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert [term["weight"] for term in terms] == [100, 75, 50, 25]
    assert found["metadata"]["annotations"][names.INJECTED] == "true"
    assert found["metadata"]["labels"][names.POD_LABEL] == "true"


@pytest.mark.usefixtures("called")
def test_a_pod_that_comes_again_is_taken_as_it_is(client: Client, namespace: str):
    first = create(client, namespace, pod(ASKED))
    again = {"apiVersion": "v1", "kind": "Pod", "spec": first["spec"]}
    again["metadata"] = {"name": "again", "annotations": first["metadata"]["annotations"]}
    second = create(client, namespace, again)
    assert second["spec"] == first["spec"]


@pytest.mark.usefixtures("called")
def test_a_pod_without_the_annotation_is_untouched(client: Client, namespace: str):
    found = create(client, namespace, pod())
    assert "affinity" not in found["spec"]
    assert "volumes" not in found["spec"]
    assert "annotations" not in found["metadata"]


@pytest.mark.usefixtures("called")
def test_a_pod_of_kserves_has_its_model_mounted_instead_of_downloaded(
    client: Client, namespace: str
):
    before = deepcopy(KSERVE_PODS["modelcar"])
    before["spec"]["serviceAccountName"] = "default"
    found = create(client, namespace, before)
    (server,) = found["spec"]["containers"]
    assert "/mnt/models" in [mount["mountPath"] for mount in server["volumeMounts"]]
    assert "initContainers" not in found["spec"]
    assert "modelcache.io/storage-uri" in found["metadata"]["annotations"]


@pytest.mark.usefixtures("called")
def test_a_mistake_is_refused_with_its_message(client: Client, namespace: str):
    mount = {"name": "scratch", "mountPath": "/models/llama"}
    spec = {
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [{"name": "main", "image": "example.test/x", "volumeMounts": [mount]}],
    }
    with pytest.raises(ApiError) as caught:
        create(client, namespace, pod(ASKED, spec=spec))
    assert caught.value.status.code == 400
    assert str(caught.value) == (
        "admission webhook \"pods.modelcache.io\" denied the request: container 'main' has volume "
        "'scratch' at /models/llama already; choose another path for s3://bucket/llama in "
        "annotation modelcache.io/models"
    )
    assert not list(client.list(Pod, namespace=namespace))


@pytest.mark.usefixtures("called")
def test_a_dry_run_shows_what_would_be(client: Client, namespace: str):
    written = pod(ASKED)
    written["metadata"]["namespace"] = namespace
    found = client.create(Pod.from_dict(written), dry_run=True).to_dict()
    assert found["spec"]["containers"][0]["volumeMounts"] == [MOUNT]
    assert not list(client.list(Pod, namespace=namespace))


@pytest.mark.usefixtures("called")
def test_a_gate_holds_the_pod(client: Client, namespace: str):
    found = create(client, namespace, pod(ASKED, gate="true", gate_timeout="10m"))
    assert found["spec"]["schedulingGates"] == [{"name": "modelcache.io/weights"}]


@pytest.mark.usefixtures("called")
def test_a_pod_with_a_node_is_taken_though_a_gate_is_asked_for(client: Client, namespace: str):
    found = create(client, namespace, pod(ASKED, gate="true", spec={"nodeName": "node-1"}))
    assert "schedulingGates" not in found["spec"]


def test_without_a_webhook_that_answers_pods_are_as_they_were(
    running: Hook, register: Register, certificates: Certificates, client: Client, namespace: str
):
    register(running.url, bundle(certificates))
    wait_called(client, namespace)
    assert create(client, namespace, pod(ASKED))["spec"]["volumes"]
    client.delete(Pod, "server", namespace=namespace, grace_period=0)
    running.stop()
    found = create(client, namespace, pod(ASKED))
    assert "volumes" not in found["spec"]


def test_what_nodes_have_is_learnt_as_it_changes(
    register: Register, certificates: Certificates, client: Client, namespace: str
):
    warmth = ClusterWarmth(client)
    warmth.start()
    source = CertificateFiles(certificates.cert_file, certificates.key_file)
    node = f"node-of-{namespace}"
    ref = parse_ref(LLAMA)
    try:
        assert warmth.wait_synced(20)
        assert warmth.model_ids(ref) == []
        with hook(source, warmth, gate=True) as running:
            register(running.url, bundle(certificates))
            wait_called(client, namespace)
            found = create(client, namespace, pod(ASKED), name="before")
            assert "affinity" not in found["spec"]
            assert found["spec"]["schedulingGates"]
            client.create(NodeModels(metadata=ObjectMeta(name=node)))
            held = {"ref": LLAMA, "modelId": LLAMA_ID, "phase": "warm", "percent": 100}
            change = {"status": {"models": [held]}}
            client.patch(NodeModels.Status, node, change, patch_type=PatchType.MERGE)
            wait_until(lambda: warmth.model_ids(ref))
            found = create(client, namespace, pod(ASKED), name="after")
            assert found["spec"]["affinity"]
            assert "schedulingGates" not in found["spec"]
            client.delete(NodeModels, node)
            wait_until(lambda: not warmth.model_ids(ref))
    finally:
        warmth.stop()
        remove(client, NodeModels, node)
