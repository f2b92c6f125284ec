"""The whole way with a real kubelet: annotation, webhook, scheduler, CSI, containerd, container.

Nothing plays anybody here but the sidecar that tells kubelet of the driver.
"""

from __future__ import annotations

import base64
import hashlib
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lightkube import ApiError, Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Node, Pod, ServiceAccount
from lightkube.resources.storage_v1 import CSIDriver, CSINode
from lightkube.types import PatchType
from msgspec import ValidationError

from modelcache.faces.kubernetes.objects import NodeModels
from modelcache.faces.webhook.tls import CertificateFiles
from modelcache.mounts import mounts_below
from tests.agent.nodes import Models, ref_to
from tests.agent.support import random_bytes
from tests.cluster.installing import rendered
from tests.cluster.kubelet import (
    DRIVER,
    IMAGE,
    MARKS,
    Containerd,
    Kubelet,
    image_archive,
    registered,
)
from tests.cluster.support import events_of, remove, wait_until
from tests.cluster.test_whole import Commands
from tests.faces.webhook.servers import hook
from tests.kernel.streams import needs_fuse
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.control_plane import ControlPlane
from tests.servers.faults import Waiting
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable, free_port

pytestmark = [*MARKS, pytest.mark.timeout(300)]
NODE = "real-1"
WAIT_S = 120.0
MODEL_BYTES = 5 << 22


@dataclass
class World:
    """A node that runs pods. process: the agent's. out: a folder that its pods write to."""

    client: Client
    kubelet: Kubelet
    commands: Commands
    agents: ExitStack
    process: subprocess.Popen[bytes]
    out: Path


@pytest.fixture
def world(plane: ControlPlane, client: Client, tmp_path: Path) -> Iterator[World]:
    certificates = make_certificates(tmp_path / "certificates")
    with ExitStack() as stack:
        try:
            containerd = stack.enter_context(Containerd())
            containerd.load(image_archive(tmp_path / "image.tar"))
            kubelet = stack.enter_context(Kubelet(plane, containerd, NODE))
            flags = ("--leader-elect=false", f"--secure-port={free_port()}")
            stack.enter_context(plane.running("kube-scheduler", *flags))
        except ServerUnavailable as error:
            pytest.skip(str(error))
        stack.callback(remove, client, NodeModels, NODE)
        stack.callback(remove, client, Node, NODE)
        install(client, stack)
        source = CertificateFiles(certificates.cert_file, certificates.key_file)
        running = stack.enter_context(hook(source))
        register(client, running.url, certificates)
        stack.callback(remove, client, MutatingWebhookConfiguration, "kubelet-test")
        commands = Commands(tmp_path, plane.kubeconfig(), kubelet.root, {NODE: free_port()})
        agents = stack.enter_context(ExitStack())
        process = agents.enter_context(commands.agent(NODE))
        stack.enter_context(commands.driver(NODE))
        socket = tmp_path / f"csi-{NODE}.sock"
        wait_until(socket.exists, WAIT_S)
        told = stack.enter_context(registered(socket, kubelet))
        wait_until(lambda: told, WAIT_S)
        assert told[0].plugin_registered, told[0].error
        wait_until(lambda: DRIVER in drivers_of(client), WAIT_S)
        out = tmp_path / "out"
        out.mkdir()
        stack.callback(end_pods, client, kubelet)
        yield World(client, kubelet, commands, agents, process, out)


def install(client: Client, stack: ExitStack) -> None:
    (driver,) = (each for each in rendered() if each["kind"] == "CSIDriver")
    client.create(CSIDriver.from_dict(driver))
    stack.callback(remove, client, CSIDriver, DRIVER)


def register(client: Client, url: str, certificates: Certificates) -> None:
    """The chart's webhook, at our address."""
    (found,) = (each for each in rendered() if each["kind"] == "MutatingWebhookConfiguration")
    authority = base64.b64encode(certificates.ca_file.read_bytes()).decode()
    found["metadata"]["name"] = "kubelet-test"
    for each in found["webhooks"]:
        each["clientConfig"] = {"url": f"{url}/mutate", "caBundle": authority}
    client.create(MutatingWebhookConfiguration.from_dict(found))


def drivers_of(client: Client, node: str = NODE) -> list[str]:
    try:
        found = client.get(CSINode, node)
    except (ApiError, ValidationError):  # not there; or none yet, which is `null`
        return []
    return [each.name for each in found.spec.drivers or []]


def end_pods(client: Client, kubelet: Kubelet) -> None:
    for pod in client.list(Pod, namespace="default"):
        client.delete(Pod, str(pod.metadata.name), namespace="default")
    wait_until(lambda: not list(client.list(Pod, namespace="default")), WAIT_S)
    wait_until(lambda: not ours(kubelet), WAIT_S)


def ours(kubelet: Kubelet) -> list[str]:
    """Models that are mounted for pods."""
    found = mounts_below(kubelet.root)
    return [str(each.target) for each in found if "kubernetes.io~csi" in str(each.target)]


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


def pod(name: str, models: str, out: Path, script: str) -> Pod:
    """One that names its models, and nothing else of ours."""
    return Pod.from_dict(
        {
            "metadata": {
                "name": name,
                "namespace": "default",
                "annotations": {"modelcache.io/models": models},
            },
            "spec": {
                "hostNetwork": True,  # there are no network plugins here
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {
                        "name": "server",
                        "image": IMAGE,
                        "imagePullPolicy": "Never",
                        "command": ["/bin/sh", "-c", script],
                        "volumeMounts": [{"name": "out", "mountPath": "/out"}],
                    }
                ],
                "volumes": [{"name": "out", "hostPath": {"path": str(out)}}],
            },
        }
    )


def created(world: World, wanted: Pod) -> None:
    """Once the API server has heard of the webhook, which it does a moment after."""

    def mutated() -> bool:
        found: Any = world.client.create(wanted, dry_run=True)
        return any(volume.csi for volume in found.spec.volumes)

    wait_until(mutated)
    world.client.create(wanted)


def phase_of(client: Client, name: str) -> str:
    status = client.get(Pod, name, namespace="default").status
    return str(status and status.phase)


SCRIPT = """
touch /models/m/x 2> /out/refused
while true; do
  sha256sum /models/m/model.safetensors > /out/new && cat /out/new > /out/sum
  sleep 1
done
"""


def test_an_annotated_pod_sees_its_model_and_keeps_it(world: World, models: Models):
    ref = str(ref_to(models.add("m", MODEL_BYTES), "m"))
    expected = hashlib.sha256(random_bytes(MODEL_BYTES, 0)).hexdigest()
    summed = world.out / "sum"

    def seen() -> bool:
        return summed.exists() and summed.read_text().startswith(expected)

    created(world, pod("server", f"{ref}=/models/m", world.out, SCRIPT))
    wait_until(lambda: phase_of(world.client, "server") == "Running", WAIT_S)
    wait_until(seen, WAIT_S)
    assert "Read-only file system" in (world.out / "refused").read_text()
    bound = world.client.get(Pod, "server", namespace="default")
    assert bound.spec is not None
    assert bound.spec.nodeName == NODE
    wait_until(lambda: "ModelWarm" in events_of(world.client, "server"))
    assert len(ours(world.kubelet)) == 1

    # Killed, agent and kubelet are started anew: what is mounted is read on, and is known.
    world.process.send_signal(signal.SIGKILL)
    world.process.wait()
    summed.unlink()
    wait_until(seen)
    world.kubelet.restart()
    world.agents.enter_context(world.commands.agent(NODE))
    summed.unlink()
    wait_until(seen)
    wait_until(lambda: phase_of(world.client, "server") == "Running", WAIT_S)
    (status,) = world.client.get(Pod, "server", namespace="default").status.containerStatuses
    assert status.restartCount == 0

    world.client.delete(Pod, "server", namespace="default")
    wait_until(lambda: not ours(world.kubelet), WAIT_S)


COUNTING = """
while true; do
  grep -c ' /models/m ' /proc/self/mountinfo > /out/new && cat /out/new > /out/mounts
  if [ -e /out/read ]; then
    sha256sum /models/m/model.safetensors > /out/new && cat /out/new > /out/sum
  fi
  sleep 1
done
"""


@needs_fuse
def test_a_pod_that_streams_has_the_stored_files_once_all_of_them_are_here(
    world: World, models: Models, monkeypatch: pytest.MonkeyPatch
):
    """As on a kernel without passthrough; the container runs before the model is there."""
    world.agents.close()
    monkeypatch.setenv("MODELCACHE_STREAM_PASSTHROUGH", "false")
    monkeypatch.setenv("MODELCACHE_STREAM_HOLD_S", "0")
    process = world.agents.enter_context(world.commands.agent(NODE))
    rest = Waiting(MODEL_BYTES // 2)
    ref = str(ref_to(models.add("m", MODEL_BYTES, plan=rest), "m"))
    expected = hashlib.sha256(random_bytes(MODEL_BYTES, 0)).hexdigest()
    wanted = pod("streams", f"{ref}=/models/m", world.out, COUNTING)
    assert wanted.metadata is not None
    assert wanted.metadata.annotations is not None
    wanted.metadata.annotations["modelcache.io/mode"] = "stream"

    def said(name: str, begins: str) -> bool:
        path = world.out / name
        return path.exists() and path.read_text().startswith(begins)

    created(world, wanted)
    try:
        wait_until(lambda: said("mounts", "1"), WAIT_S)
    finally:
        rest.release()
    wait_until(lambda: said("mounts", "2"), WAIT_S)

    process.send_signal(signal.SIGKILL)
    process.wait()
    (world.out / "read").touch()
    wait_until(lambda: said("sum", expected), WAIT_S)
    world.agents.enter_context(world.commands.agent(NODE))
    world.client.delete(Pod, "streams", namespace="default")
    wait_until(lambda: not ours(world.kubelet), WAIT_S)


def test_a_model_that_cannot_be_had_is_told_in_the_pods_events(world: World, models: Models):
    proxy = models.add("m", MODEL_BYTES)
    ref = f"{proxy.url}/not-there/"
    created(world, pod("missing", f"{ref}=/models/m", world.out, SCRIPT))

    def told() -> bool:
        """By kubelet, in the driver's words; before, it may only know that it is looked for."""
        said = events_of(world.client, "missing").get("FailedMount", "")
        return "NotFound" in said and "not-there" in said

    wait_until(told, WAIT_S)
    assert phase_of(world.client, "missing") == "Pending"


def test_kubelet_hands_over_who_a_pod_is(
    world: World, models: Models, monkeypatch: pytest.MonkeyPatch
):
    """The account has no role anywhere, which the agent can only say if it was told the account."""
    asked = {"spec": {"tokenRequests": [{"audience": "sts.amazonaws.com"}]}}
    world.client.patch(CSIDriver, DRIVER, asked, patch_type=PatchType.MERGE)
    account = ServiceAccount(metadata=ObjectMeta(name="kubelet-reader", namespace="default"))
    world.client.create(account)
    world.agents.close()
    monkeypatch.setenv("MODELCACHE_ACCESS_MODE", "pod")
    world.agents.enter_context(world.commands.agent(NODE))
    ref = str(ref_to(models.add("m", MODEL_BYTES), "m"))
    wanted = pod("known", f"{ref}=/models/m", world.out, SCRIPT)
    assert wanted.spec is not None
    wanted.spec.serviceAccountName = "kubelet-reader"
    created(world, wanted)

    def told() -> bool:
        said = events_of(world.client, "known").get("FailedMount", "")
        return "system:serviceaccount:default:kubelet-reader has no role" in said

    wait_until(told, WAIT_S)
    world.client.delete(ServiceAccount, "kubelet-reader", namespace="default")
