"""The chart and the manifests on a real API server: what they make is taken, and is enough."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightkube import ApiError, Client
from lightkube.models.authorization_v1 import ResourceAttributes, SubjectAccessReviewSpec
from lightkube.models.core_v1 import CSIVolumeSource, PodSchedulingGate, Volume
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.apps_v1 import DaemonSet
from lightkube.resources.authorization_v1 import SubjectAccessReview
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Event, Namespace, Node, Pod, Secret
from lightkube.types import PatchType

from modelcache.config import AccessSettings, KubernetesSettings, load_settings
from modelcache.domain.addresses import EVERYWHERE
from modelcache.domain.refs import parse_ref
from modelcache.domain.storage_uris import ref_of
from modelcache.domain.wanted import wanted_id
from modelcache.faces.controller.controlling import Controlling
from modelcache.faces.controller.leading import Leading
from modelcache.faces.kubernetes import names
from modelcache.faces.kubernetes.objects import ModelPrefetch, NodeModels, now_text
from modelcache.faces.kubernetes.pods import models_of
from modelcache.faces.watcher.cluster import Cluster
from modelcache.faces.watcher.members import EndpointMembers
from modelcache.faces.webhook.shared import SharedCertificates, Where, service_hosts
from modelcache.faces.webhook.warmth import ClusterWarmth
from tests.agent.nodes import Models, node_settings, ref_to
from tests.cluster import foreign
from tests.cluster.installing import (
    BASE,
    CHART,
    COMPONENT_VALUES,
    COMPONENTS,
    DAEMONSET,
    NAMESPACE,
    OVERLAY,
    TOKEN_SECRET,
    Kubectl,
    Object,
    by_key,
    component,
    documents,
    helm,
    key,
    kustomized,
    portable,
    rendered,
)
from tests.cluster.support import delete_pod, events_of, make_node, make_pod, remove, wait_until
from tests.faces.http.agents import running_faces
from tests.servers.control_plane import VERSION, ControlPlane
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
NODES = ("i1", "i2")
GUIDE = DAEMONSET.parent / "docs" / "kubernetes.md"
CONTAINERFILE = DAEMONSET / "image" / "Containerfile"
FOREIGN = {"Issuer", "Certificate", "PodMonitor", "ServiceMonitor", "PrometheusRule"}
CLASS = {"name": "llama", "parameters": {"model": "s3://models/llama"}}
ALL = {
    "csi.controller.enabled": True,
    "csi.controller.storageClasses": [CLASS],
    "csi.livenessProbe.enabled": True,
    "csi.tokenRequests": [{"audience": "sts.amazonaws.com", "expirationSeconds": 3600}],
    "monitoring.podMonitor": True,
    "networkPolicy.enabled": True,
    "peers.tls.enabled": True,
    "priorityQuota": True,
    "webhook.certificates": "cert-manager",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": ALL,
    "no csi": {"csi.enabled": False},
    "no webhook": {"webhook.enabled": False},
    "no controller": {"controller.enabled": False},
    "no peers": {"peers.enabled": False},
    "peers by dns": {"peers.discovery": "dns"},
    "peers by tls alone": {
        "peers.token.enabled": False,
        "peers.tls.enabled": True,
        "peers.tls.existingSecret": "agents",
    },
    "an issuer of the cluster": {
        "peers.tls.enabled": True,
        "peers.tls.issuerRef": {"kind": "ClusterIssuer", "name": "internal"},
        "webhook.certificates": "cert-manager",
        "webhook.issuerRef": {"kind": "ClusterIssuer", "name": "internal"},
    },
    "a token of one's own": {"peers.token.existingSecret": "token"},
    "a certificate of one's own": {
        "webhook.certificates": "existing",
        "webhook.existingSecret": "tls",
        "webhook.caBundle": "-----BEGIN CERTIFICATE-----\n…",
        "webhook.affinityToWarmNodes": False,
        "webhook.gate": True,
        "webhook.failurePolicy": "Fail",
    },
    "the host's network": {"agent.hostNetwork": True, "webhook.hostNetwork": True},
    "ipv6": {"agent.bindAddress": "[::]"},
    "another kubelet folder": {"kubeletDir": "/var/lib/k0s/kubelet"},
    "credentials": {
        "agent.env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        "agent.envFrom": [{"secretRef": {"name": "s3"}}],
        "agent.volumes": [{"name": "hf", "secret": {"secretName": "hf"}}],
        "agent.volumeMounts": [{"name": "hf", "mountPath": "/etc/hf"}],
        "agent.serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/m"},
    },
    "placement": {
        **{f"{part}.nodeSelector": {"pool": "a"} for part in ("agent", "controller", "webhook")},
        **{f"{part}.tolerations": [] for part in ("agent", "controller", "webhook")},
        **{
            f"{part}.podAnnotations": {"example.org/a": "b"}
            for part in ("agent", "controller", "webhook")
        },
        "webhook.excludedNamespaces": ["monitoring"],
        "webhook.namespaceSelector": {"matchLabels": {"models": "yes"}},
        "webhook.objectSelector": {"matchLabels": {"models": "yes"}},
        "imagePullSecrets": [{"name": "registry"}],
        "image.digest": f"sha256:{'0' * 64}",
    },
    "a scaler": {"scaler.enabled": True, "networkPolicy.enabled": True},
    "a scaler that writes down often what it has seen": {
        "scaler.enabled": True,
        "scaler.checkpointEvery": "30s",
    },
    "a scaler with certificates by cert-manager": {
        "scaler.enabled": True,
        "scaler.certificates": "cert-manager",
        "scaler.prometheus.url": "http://prometheus.monitoring:9090",
        "scaler.prometheus.tokenSecret": "prometheus",
    },
    "a scaler beside another server of external metrics": {
        "scaler.enabled": True,
        "scaler.externalMetrics.apiService": False,
        "scaler.certificates": "existing",
        "scaler.existingSecret": "tls",
        "scaler.keda.enabled": True,
        "networkPolicy.enabled": True,
    },
    "a scaler that KEDA asks over TLS": {
        "scaler.enabled": True,
        "scaler.externalMetrics.enabled": False,
        "scaler.keda.enabled": True,
        "scaler.keda.tls.secret": "keda",
        "scaler.keda.tls.clientAuthoritySecret": "keda",
    },
    "a scaler without external metrics": {
        "scaler.enabled": True,
        "scaler.externalMetrics.enabled": False,
        "monitoring.podMonitor": True,
    },
    "service monitors": {
        "monitoring.serviceMonitor": True,
        "monitoring.rules": True,
        "monitoring.labels": {"release": "p"},
    },
}


@pytest.fixture(scope="session")
def kubectl(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """With the namespace of an installation."""
    with plane.client() as client:
        client.apply(
            Namespace.from_dict({"metadata": {"name": NAMESPACE}}), field_manager="installer"
        )
    return Kubectl(plane, tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="session")
def kinds(kubectl: Kubectl) -> set[str]:
    """Other projects' kinds of objects that the API server has now."""
    found = list(foreign.definitions())
    if found:
        kubectl.apply(found)
    for each in found:
        name = f"customresourcedefinition/{each['metadata']['name']}"
        kubectl("wait", "--for=condition=Established", name)
    return {each["spec"]["names"]["kind"] for each in found}


@pytest.fixture
def installed(client: Client, kubectl: Kubectl) -> Iterator[list[Object]]:
    """The chart's defaults, for real."""
    objects = rendered()
    kubectl.apply(objects)
    for name in NODES:
        make_node(client, name, pool="gpu")
    yield objects
    kubectl.delete(objects)
    for namespace in ("default", NAMESPACE):
        for pod in client.list(Pod, namespace=namespace):
            delete_pod(client, str(pod.metadata.name), namespace)
        client.deletecollection(Event, namespace=namespace)
    wait_until(lambda: not _then_gone(client, partial(_files, client), "p"))
    for name in NODES:
        remove(client, Node, name)
        remove(client, NodeModels, name)


@contextmanager
def account(
    plane: ControlPlane, kubectl: Kubectl, component: str, pod: str = ""
) -> Iterator[Client]:
    """A client with the token of a part's account."""
    with plane.client(kubectl.token(f"modelcache-{component}", pod)) as made:
        yield made


@contextmanager
def agent_on(plane: ControlPlane, client: Client, kubectl: Kubectl, node: str) -> Iterator[Client]:
    """A client with the token that kubelet gives the agent's pod on a node."""
    make_pod(
        client,
        f"agent-{node}",
        node=node,
        namespace=NAMESPACE,
        serviceAccountName="modelcache-agent",
    )
    with account(plane, kubectl, "agent", f"agent-{node}") as made:
        wait_until(lambda: not refusal(lambda: list(made.list(ModelPrefetch))))  # roles are known
        yield made


def refusal(call: Any) -> str:
    """Why the API server did not take it; empty if it did."""
    try:
        call()
    except ApiError as error:
        if error.status.code not in {403, 422}:
            raise
        return str(error.status.message)
    return ""


# What is rendered


def test_the_chart_is_well_formed():
    helm("lint", "--strict", "--with-subcharts", str(CHART), f"--kube-version={VERSION}")


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_what_the_chart_makes_is_taken(kubectl: Kubectl, kinds: set[str], values: dict[str, Any]):
    objects = rendered(values)
    by_key(objects)
    left_out = FOREIGN - kinds
    kubectl.apply([each for each in objects if each["kind"] not in left_out], dry_run=True)
    for each in (each for each in objects if each["kind"] in FOREIGN):
        assert each["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_pods_are_taken_and_all_but_agents_are_restricted(
    kubectl: Kubectl, client: Client, values: dict[str, Any]
):
    _namespace(client, "restricted")
    _namespace(client, "privileged")
    for found in rendered(values):
        template = (found.get("spec") or {}).get("template")
        if template is None:
            continue
        host = template["spec"].get("hostNetwork", False)
        level = "privileged" if found["kind"] == "DaemonSet" or host else "restricted"
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        # There is no controller here that would make the accounts' pods; the account is not asked.
        pod["metadata"] = {"name": "tried", "namespace": level}
        kubectl.apply([pod], dry_run=True)
        if level == "privileged" and not host:
            pod["metadata"] = {"name": "tried", "namespace": "restricted"}
            with pytest.raises(AssertionError, match="privileged"):
                kubectl.apply([pod], dry_run=True)


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_selectors_and_names_of_ports_meet(values: dict[str, Any]):
    objects = rendered(values)
    pods = [each["spec"]["template"] for each in objects if "template" in (each.get("spec") or {})]
    for found in objects:
        if found["kind"] != "Service":
            continue
        wanted = found["spec"]["selector"].items()
        (pod,) = [each for each in pods if wanted <= each["metadata"]["labels"].items()]
        ports = {
            port["name"] for each in pod["spec"]["containers"] for port in each.get("ports") or ()
        }
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= ports
    for found in pods:
        volumes = {each["name"] for each in found["spec"]["volumes"]}
        mounted = {m["name"] for c in found["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounted == volumes


def test_policies_are_left_out_where_a_cluster_has_none():
    kinds = {each["kind"] for each in rendered(version="v1.28.0")}
    assert "ValidatingAdmissionPolicy" not in kinds
    assert "MutatingWebhookConfiguration" in kinds


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"agnet": {}}, "agnet"),
        ({"agent.pulls": 3}, "pulls"),
        ({"webhook.certificates": "own"}, "certificates"),
        ({"webhook.certificates": "existing"}, "existingSecret"),
        ({"kubeletDir": "var/lib/kubelet"}, "kubeletDir"),
        ({"config": {"store": {}}}, "config"),
        ({"peers.token.enabled": False}, "who they are"),
        ({"scaler.checkpointEvery": "4s"}, "checkpointEvery"),
        ({"scaler.checkpointEvery": "61m"}, "checkpointEvery"),
        ({"csi.controller.storageClasses": [{"name": "x", "parameters": {}}]}, "model"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], words: str):
    with pytest.raises(AssertionError, match=words):
        rendered(values)


# What containers are started with


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_agents_are_given_settings_that_hold(values: dict[str, Any], tmp_path: Path):
    objects = by_key(rendered(values))
    environment = _environment(objects["DaemonSet", "modelcache-agent"], "agent")
    file = tmp_path / "config.toml"
    file.write_text(objects["ConfigMap", "modelcache-agent"]["data"]["config.toml"])
    settings = load_settings(file, environment)
    kubelet = values.get("kubeletDir", "/var/lib/kubelet")
    assert settings.agent.volume_roots == (f"{kubelet}/pods",)
    assert (settings.agent.node, settings.kubernetes.node) == ("n1", "n1")
    assert settings.agent.listen == f"{values.get('agent.bindAddress', EVERYWHERE[0])}:9870"
    assert settings.kubernetes.enabled
    peers, service = settings.peers, settings.kubernetes.peers_service
    if values.get("peers.enabled", True):
        assert peers.secured
        assert peers.advertised(9871) == ("10.1.2.3", 9871)
        assert bool(peers.dns) is (values.get("peers.discovery") == "dns")
        assert service == ("" if peers.dns else f"{NAMESPACE}/modelcache-peers")
    else:
        assert (peers.listen, service) == ("127.0.0.1:9871", "")
    grace_s = objects["DaemonSet", "modelcache-agent"]["spec"]["template"]["spec"]
    assert grace_s["terminationGracePeriodSeconds"] > settings.agent.shutdown_s


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00:1::7"])
def test_a_pods_address_may_be_of_either_family(address: str):
    found = by_key(rendered())["DaemonSet", "modelcache-agent"]
    settings = load_settings(None, _environment(found, "agent", address))
    assert settings.peers.advertised(9871) == (address, 9871)


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_commands_know_all_they_are_given(values: dict[str, Any]):
    commands = {
        tuple(container["args"])
        for found in rendered(values)
        if "template" in (found.get("spec") or {})
        for container in found["spec"]["template"]["spec"]["containers"]
        if container["image"].startswith("modelcache/modelcache")
    }
    assert commands
    for arguments in commands - _known_commands:
        done = subprocess.run(  # what is not known is told before help is
            [sys.executable, "-m", "modelcache.main", *arguments, "--help"],
            capture_output=True,
            env={**os.environ, "NO_COLOR": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        _known_commands.add(arguments)


_known_commands: set[tuple[str, ...]] = set()


# Manifests


def test_manifests_are_what_the_chart_makes(kubectl: Kubectl):
    chart = by_key(map(portable, rendered()))
    del chart["Secret", TOKEN_SECRET]
    crds = [one for path in (CHART / "crds").glob("*.yaml") for one in documents(path.read_text())]
    base = kustomized(BASE)
    (config,) = [each for each in base if each["kind"] == "ConfigMap"]
    generated = config["metadata"]["name"]
    found = by_key(yaml.safe_load(yaml.safe_dump(base).replace(generated, "modelcache-agent")))
    hint = "run: python -m tests.cluster.installing"
    assert set(found) == {*chart, *map(key, crds), ("Namespace", NAMESPACE)}, hint
    assert (
        found["ConfigMap", "modelcache-agent"]["data"]
        == (chart.pop(("ConfigMap", "modelcache-agent"))["data"])
    )
    for each in (*chart.values(), *crds):
        assert found[key(each)] == each, hint
    kubectl.apply(base, dry_run=True)


@pytest.mark.parametrize("name", COMPONENT_VALUES)
def test_components_are_what_the_chart_makes(kubectl: Kubectl, name: str):
    hint = "run: python -m tests.cluster.installing"
    written = documents((COMPONENTS / name / f"{name}.yaml").read_text())
    assert written == component(name), hint
    assert written
    (listed,) = documents((COMPONENTS / name / "kustomization.yaml").read_text())
    assert listed["resources"] == [f"{name}.yaml"]
    kubectl.apply(written, dry_run=True)


def test_an_overlay_changes_what_it_says(kubectl: Kubectl):
    objects = kustomized(OVERLAY)
    kubectl.apply(objects, dry_run=True)
    (config,) = [each for each in objects if each["kind"] == "ConfigMap"]
    assert "quota_bytes" in tomllib.loads(config["data"]["config.toml"])["store"]
    pod = by_key(objects)["DaemonSet", "modelcache-agent"]["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["store"]["hostPath"]["path"] == "/mnt/nvme/modelcache"
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    images = {each["name"]: each["image"] for each in pod["containers"]}
    assert images["agent"] == images["csi"] == "registry.example.org/modelcache:0.1.0"
    settings = load_settings(
        None, _environment(by_key(objects)["DaemonSet", "modelcache-agent"], "agent")
    )
    assert settings.peers.token_file


# What is written beside them


def test_examples_of_the_guide_are_taken(kubectl: Kubectl, kinds: set[str]):
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    found = [each for block in blocks for each in documents(block)]
    kinds = {each["kind"] for each in found}
    assert {"Pod", "PersistentVolume", "StorageClass", "ModelPrefetch", "Deployment"} <= kinds
    for each in found:
        if each["kind"] == "InferenceService" and each["kind"] in kinds:
            kubectl.apply([each], dry_run=True)
        plain = _without_kserve(each)
        kubectl.apply([plain], dry_run=True)
        pod = (plain.get("spec") or {}).get("template") or plain
        models_of(pod["metadata"].get("annotations") or {})


def _without_kserve(found: Object) -> Object:
    """An InferenceService as the pod that is made of it."""
    if found["kind"] != "InferenceService":
        return found
    spec = dict(found["spec"]["predictor"])
    if model := spec.pop("model", None):
        ref_of(model["storageUri"])
        spec["containers"] = [
            {"name": "kserve-container", "image": "x", "resources": model["resources"]}
        ]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": found["metadata"], "spec": spec}


def test_the_image_has_the_user_that_the_chart_names_and_copies_what_is_there():
    lines = CONTAINERFILE.read_text().replace("\\\n", " ").splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    sources = [name for names_ in copies for name in names_ if not name.startswith("--from")]
    assert sources
    root = CONTAINERFILE.parents[2]
    assert all((root / name).exists() for name in sources if not name.startswith("/"))
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    for found in rendered():
        if found["kind"] == "Deployment":
            context = found["spec"]["template"]["spec"]["securityContext"]
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


# Helm's own way


def test_an_upgrade_keeps_what_was_made_and_an_uninstall_leaves_nothing(
    client: Client, kubectl: Kubectl
):
    where = [f"--namespace={NAMESPACE}"]
    helm("install", "modelcache", str(CHART), *where, kubeconfig=kubectl.kubeconfig)
    try:
        before = client.get(Secret, TOKEN_SECRET, namespace=NAMESPACE).data
        _trust(client, "Y2E=")
        helm(
            *("upgrade", "modelcache", str(CHART), "--set=logLevel=debug", *where),
            kubeconfig=kubectl.kubeconfig,
        )
        assert client.get(Secret, TOKEN_SECRET, namespace=NAMESPACE).data == before
        (webhook,) = client.get(MutatingWebhookConfiguration, "modelcache").webhooks or []
        assert webhook.clientConfig.caBundle == "Y2E="
        agents = client.get(DaemonSet, "modelcache-agent", namespace=NAMESPACE)
        assert "debug" in str(agents.spec)
        notes = helm("get", "notes", "modelcache", *where, kubeconfig=kubectl.kubeconfig)
        assert "kubectl get nodemodels" in notes
    finally:
        helm("uninstall", "modelcache", *where, kubeconfig=kubectl.kubeconfig)
    left = kubectl(
        "get",
        "all,sa,secret,role,rolebinding,clusterrole,clusterrolebinding,csidriver,"
        "mutatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding",
        f"--namespace={NAMESPACE}",
        "--selector=app.kubernetes.io/name=modelcache",
        "--output=name",
    )
    assert not left.strip()


# What the parts may do, and that it is enough


def test_an_agent_can_do_its_work_with_its_account(  # noqa: PLR0917 - a fixture each
    plane: ControlPlane,
    client: Client,
    kubectl: Kubectl,
    installed: list[Object],
    tmp_path: Path,
    web: tuple[Nginx, Path],
):
    del installed
    node = NODES[0]
    base = node_settings(tmp_path / "store", node=node, socket=tmp_path / "a.sock", listen="")
    base = replace(base, access=AccessSettings(local=True))  # the origin is on this machine
    models = Models(web[0].url, web[1])
    ref = str(ref_to(models.add("m"), "m"))
    log = _Log()
    with agent_on(plane, client, kubectl, node) as asking, running_faces(base) as running:
        chosen = replace(KubernetesSettings(enabled=True, report_s=0.1), node=node)
        cluster = Cluster(running.daemon, chosen, client=asking, log=log)
        cluster.start()
        members = EndpointMembers(asking, f"{NAMESPACE}/modelcache-peers", 9871, log=log)
        members.start()
        try:
            make_pod(client, "p", node=node, annotations={names.MODELS: ref})
            declared = {"refs": [ref], "nodeSelector": {"pool": "gpu"}}
            client.create(_prefetch("declared", declared))
            wait_until(lambda: events_of(client, "p").get("ModelWarm"))
            told = wait_until(lambda: _status(client, node).get("models"))
            assert told[0]["percent"] == 100
            owner = client.get(NodeModels, node).metadata.ownerReferences
            assert [each.name for each in owner] == [node]
            status = running.daemon.node.status(parse_ref(ref))
            assert {want.holder.partition("/")[0] for want in status.wants} == {"pod", "prefetch"}
            assert members._slices.wait_synced(10)
        finally:
            members.stop()
            cluster.stop()
            remove(client, ModelPrefetch, "declared")
            models.close()
    assert log.refused == []


def test_a_controller_can_do_its_work_with_its_account(
    plane: ControlPlane, client: Client, kubectl: Kubectl, installed: list[Object]
):
    del installed
    ref, log = "s3://models/llama", _Log()
    _report(client, NODES[0], ref)
    client.create(_prefetch("declared", {"refs": [ref], "nodeSelector": {"pool": "gpu"}}))
    asked = {names.MODELS: ref, names.INJECTED: "true"}
    gate = [PodSchedulingGate(name=names.GATE)]
    _labelled(make_pod(client, "gated", annotations=asked, schedulingGates=gate), client)
    _labelled(make_pod(client, "bound", node=NODES[0], annotations=asked), client)
    with account(plane, kubectl, "controller") as asking:
        wait_until(lambda: not refusal(lambda: list(asking.list(NodeModels))))
        leading = Leading(
            asking, name="modelcache-controller", namespace=NAMESPACE, me="c1", log=log
        )
        thread = threading.Thread(target=leading.run, args=(Controlling(asking, log=log).lead,))
        thread.start()
        try:
            wait_until(lambda: _warm_label(client, NODES[0]) == "100")
            wait_until(lambda: "WeightsGateLifted" in events_of(client, "gated"))
            wait_until(lambda: _condition(client.get(Pod, "bound"), names.WEIGHTS_READY) == "True")
            wait_until(lambda: _condition(client.get(Node, NODES[0]), names.AGENT_READY) == "True")
            wait_until(lambda: client.get(ModelPrefetch, "declared").get("status") or {})
        finally:
            leading.stop()
            thread.join(30)
            remove(client, ModelPrefetch, "declared")
            client.delete(Lease, "modelcache-controller", namespace=NAMESPACE)
    assert log.refused == []


def test_a_webhook_can_do_its_work_with_its_account(
    plane: ControlPlane, client: Client, kubectl: Kubectl, installed: list[Object]
):
    del installed
    log = _Log()
    _report(client, NODES[0], "s3://models/llama")
    where = Where(
        NAMESPACE,
        "modelcache-webhook-certificates",
        "modelcache",
        service_hosts("modelcache-webhook", NAMESPACE),
    )
    with account(plane, kubectl, "webhook") as asking:
        wait_until(lambda: not refusal(lambda: list(asking.list(NodeModels))))
        SharedCertificates(asking, where, log).current()
        SharedCertificates(asking, where, log).current()  # a second replica: what is there
        warmth = ClusterWarmth(asking, log=log)
        warmth.start()
        assert warmth.wait_synced(10)
        assert warmth.model_ids(parse_ref("s3://models/llama"))
        warmth.stop()
        taken = refusal(lambda: asking.get(Secret, TOKEN_SECRET, namespace=NAMESPACE))
        assert "forbidden" in taken
    (webhook,) = client.get(MutatingWebhookConfiguration, "modelcache").webhooks or []
    assert webhook.clientConfig.caBundle
    client.delete(Secret, "modelcache-webhook-certificates", namespace=NAMESPACE)
    assert log.refused == []


# verb, resource or resource/subresource, and perhaps =name
NEVER = {
    "agent": [
        *[f"{verb} nodes" for verb in ("patch", "update", "delete", "create")],
        *[f"{verb} pods" for verb in ("get", "patch", "update", "delete", "create")],
        *[f"patch {resource}/status" for resource in ("nodes", "pods", "modelprefetches")],
        *[f"{verb} nodemodels" for verb in ("get", "list", "delete", "update", "patch")],
        *[f"{verb} modelprefetches" for verb in ("create", "patch", "delete")],
        *[f"{verb} leases" for verb in ("get", "create", "update")],
        *["create pods/exec", "create serviceaccounts/token", "list events"],
        *["get serviceaccounts", "delete servicecidrs"],
    ],
    "controller": [
        *[f"{verb} nodes" for verb in ("update", "delete", "create")],
        *[f"{verb} pods" for verb in ("update", "delete", "create")],
        *[f"{verb} nodemodels" for verb in ("create", "patch", "delete")],
        *[f"{verb} modelprefetches" for verb in ("create", "patch", "delete")],
        *["create pods/exec", "patch nodemodels/status", "create serviceaccounts/token"],
        *["list leases", "get leases=other", "update leases=other", "list events"],
    ],
    "webhook": [
        *[f"{verb} pods" for verb in ("get", "list", "patch", "create")],
        *[f"{verb} nodes" for verb in ("get", "list", "patch")],
        *["patch nodemodels/status", "create events", "create serviceaccounts/token"],
        *[f"get secrets={TOKEN_SECRET}", "delete secrets=modelcache-webhook-certificates"],
        "list mutatingwebhookconfigurations",
        "patch mutatingwebhookconfigurations=other",
    ],
}
ALWAYS_NEVER = (
    "list secrets",
    "get secrets=other",
    "list configmaps",
    "create clusterrolebindings",
    "escalate clusterroles",
    "impersonate users",
)
GROUPS = {
    "clusterrolebindings": "rbac.authorization.k8s.io",
    "clusterroles": "rbac.authorization.k8s.io",
    "leases": "coordination.k8s.io",
    "modelprefetches": names.GROUP,
    "mutatingwebhookconfigurations": "admissionregistration.k8s.io",
    "nodemodels": names.GROUP,
    "servicecidrs": "networking.k8s.io",
}


@pytest.mark.parametrize("component", NEVER)
def test_accounts_may_do_no_more(client: Client, installed: list[Object], component: str):
    del installed
    known = {"agent": "list pods", "controller": "patch nodes", "webhook": "list nodemodels"}
    wait_until(lambda: _may(client, component, known[component]))
    for asked in (*NEVER[component], *ALWAYS_NEVER):
        assert not _may(client, component, asked), asked


def test_the_cluster_tells_an_agent_which_networks_are_its_services(
    client: Client, installed: list[Object]
):
    del installed
    wait_until(lambda: _may(client, "agent", "list servicecidrs"))


def test_accounts_are_read_only_where_pods_show_who_they_are():
    def rules(values: dict[str, Any]) -> list[Any]:
        found = by_key(rendered(values))[("ClusterRole", "modelcache-agent")]["rules"]
        return [each for each in found if "serviceaccounts" in each["resources"]]

    assert rules({}) == []
    (rule,) = rules({"csi.tokenRequests": [{"audience": "sts.amazonaws.com"}]})
    assert rule["verbs"] == ["get"]


# Policies


def test_an_agent_tells_of_its_own_node_only(
    plane: ControlPlane, client: Client, kubectl: Kubectl, installed: list[Object]
):
    del installed
    mine, other = NODES
    client.create(_node_models(other))
    with (
        agent_on(plane, client, kubectl, mine) as asking,
        account(plane, kubectl, "agent") as unbound,
    ):
        refused = f"only the NodeModels of its own node, not {other}"
        wait_until(lambda: refused in refusal(lambda: _tell(asking, other)))
        none = {"status": {"warm": None}}  # what was taken before the policy was known
        client.patch(NodeModels.Status, other, none, patch_type=PatchType.MERGE)
        asking.create(_node_models(mine))
        _tell(asking, mine)
        assert refused in refusal(lambda: asking.create(_node_models(other)))
        assert "its own node" in refusal(lambda: asking.create(_node_models(f"{mine}{other}")))
        assert "its own node" in refusal(lambda: _tell(unbound, mine))
    assert _status(client, mine)["warm"] == 1
    assert not _status(client, other)


def test_pods_may_not_ask_for_files_of_the_agents_container(
    client: Client, installed: list[Object]
):
    del installed
    secrets = "file:///var/lib/kubelet/pods?include=**/token"

    def volume(ref: str) -> list[Volume]:
        source = CSIVolumeSource(
            driver=names.CSI_DRIVER, readOnly=True, volumeAttributes={"model": ref}
        )
        return [Volume(name="m", csi=source)]

    def annotated(ref: str) -> str:
        return refusal(lambda: make_pod(client, "p", annotations={names.MODELS: ref}))

    before = make_pod(client, "before", annotations={names.MODELS: "s3://models/llama"})
    wait_until(lambda: "file://" in _then_gone(client, annotated, secrets))
    assert "file://" in annotated(f"s3://models/llama=/m\n  FILE{secrets[4:]}=/n")
    assert "file://" in refusal(lambda: make_pod(client, "p", volumes=volume(secrets)))
    assert "file://" in refusal(
        lambda: make_pod(client, "p", volumes=volume(f" File{secrets[4:]}"))
    )
    change = {"metadata": {"annotations": {names.MODELS: secrets}}}
    name = str(before.metadata.name)
    assert "file://" in refusal(lambda: client.patch(Pod, name, change, patch_type=PatchType.MERGE))
    assert not annotated("s3://models/llama=/m")
    assert not refusal(lambda: make_pod(client, "q", volumes=volume("s3://models/llama")))
    assert not refusal(lambda: make_pod(client, "r", volumes=[Volume(name="empty")]))


def test_a_pod_from_before_a_policy_can_still_be_changed_and_deleted(
    client: Client, kubectl: Kubectl
):
    assert not _files(client, "old")
    policies = [each for each in rendered() if key(each)[1] == "modelcache-file-refs"]
    kubectl.apply(policies)
    try:
        wait_until(lambda: _then_gone(client, partial(_files, client), "p"))
        change = {"metadata": {"labels": {"a": "b"}}}
        client.patch(Pod, "old", change, patch_type=PatchType.MERGE)
    finally:
        kubectl.delete(policies)
        delete_pod(client, "old")


class _Log:
    """What parts warn of; a watch that ends with its client is nothing to warn of here."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        if "forbidden" in str(fields):
            self.refused.append((event, fields))


def _environment(found: Object, name: str, address: str = "10.1.2.3") -> dict[str, str]:
    """As kubelet sets it for a pod on node `n1`."""
    containers = found["spec"]["template"]["spec"]["containers"]
    (container,) = [each for each in containers if each["name"] == name]
    fields = {"spec.nodeName": "n1", "status.podIP": address}
    made: dict[str, str] = {}
    for each in container["env"]:
        if "value" in each:
            value = each["value"]
            for known, text in made.items():  # those that come before
                value = value.replace(f"$({known})", text)
        else:
            value = fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        made[each["name"]] = value
    return made


def _namespace(client: Client, level: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": level}
    client.apply(
        Namespace.from_dict({"metadata": {"name": level, "labels": labels}}),
        field_manager="installer",
    )


def _may(client: Client, component: str, asked: str) -> bool:
    verb, _, rest = asked.partition(" ")
    rest, _, name = rest.partition("=")
    resource, _, subresource = rest.partition("/")
    user = f"system:serviceaccount:{NAMESPACE}:modelcache-{component}"
    answer = client.create(
        SubjectAccessReview(
            spec=SubjectAccessReviewSpec(
                user=user,
                groups=["system:serviceaccounts", "system:authenticated"],
                resourceAttributes=ResourceAttributes(
                    verb=verb,
                    group=GROUPS.get(resource, ""),
                    resource=resource,
                    subresource=subresource,
                    name=name,
                    namespace=NAMESPACE,
                ),
            )
        )
    )
    return bool(answer.status is not None and answer.status.allowed)


def _node_models(name: str) -> Any:
    kind = {"apiVersion": "modelcache.io/v1alpha1", "kind": "NodeModels"}
    return NodeModels.from_dict({**kind, "metadata": {"name": name}})


def _prefetch(name: str, spec: dict[str, Any]) -> Any:
    kind = {"apiVersion": "modelcache.io/v1alpha1", "kind": "ModelPrefetch"}
    return ModelPrefetch.from_dict({**kind, "metadata": {"name": name}, "spec": spec})


def _tell(client: Client, node: str) -> None:
    client.patch(NodeModels.Status, node, {"status": {"warm": 1}}, patch_type=PatchType.MERGE)


def _report(client: Client, node: str, ref: str) -> None:
    """One warm model, as the agent of the node tells it."""
    model = {
        "ref": ref,
        "wantedId": wanted_id(parse_ref(ref)),
        "modelId": "a" * 64,
        "phase": "warm",
        "percent": 100,
    }
    status = {"agent": {"ready": True}, "models": [model], "updatedAt": now_text()}
    client.create(_node_models(node))
    client.patch(NodeModels.Status, node, {"status": status}, patch_type=PatchType.MERGE)


def _status(client: Client, node: str) -> dict[str, Any]:
    found = [each for each in client.list(NodeModels) if each.metadata.name == node]
    return dict(found[0].get("status") or {}) if found else {}


def _labelled(pod: Pod, client: Client) -> None:
    """As the webhook leaves it."""
    change = {"metadata": {"labels": {names.POD_LABEL: "true"}}}
    client.patch(Pod, str(pod.metadata.name), change, patch_type=PatchType.MERGE)


def _trust(client: Client, bundle: str) -> None:
    """As the webhook has itself trusted."""
    change = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
    client.patch(MutatingWebhookConfiguration, "modelcache", change, patch_type=PatchType.JSON)


def _warm_label(client: Client, node: str) -> str | None:
    labels = client.get(Node, node).metadata.labels or {}
    return next((value for name, value in labels.items() if name.startswith("warm.")), None)


def _condition(found: Node | Pod, kind: str) -> str | None:
    conditions = found.status.conditions if found.status is not None else None
    return next((each.status for each in conditions or [] if each.type == kind), None)


def _files(client: Client, name: str) -> str:
    """Why a pod that asks for a folder of the agent's container cannot be made."""
    annotations = {names.MODELS: "file:///models/llama"}
    return refusal(lambda: make_pod(client, name, annotations=annotations))


def _then_gone(client: Client, make: Callable[[str], str], given: str) -> str:
    """Why a pod `p` cannot be made; one that could be is taken away again."""
    why = make(given)
    if not why:
        delete_pod(client, "p")
    return why
