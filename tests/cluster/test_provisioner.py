"""Claims become PersistentVolumes: the project's sidecar, our controller, a real API server.

The sidecar runs with the token and the rights that the chart gives it, kube-controller-manager
binds what it makes, and the volume is then published as kubelet would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lightkube import ApiError, Client
from lightkube.resources.core_v1 import Event, PersistentVolume, PersistentVolumeClaim
from lightkube.resources.storage_v1 import StorageClass

from modelcache.mounts import mounts_at
from tests.agent.nodes import Models, node_settings, ref_to
from tests.cluster import foreign
from tests.cluster.installing import NAMESPACE, Kubectl, rendered
from tests.cluster.support import wait_until
from tests.csi.driver import mount_capability, running_driver
from tests.kernel.roots import needs_root, targets
from tests.servers.control_plane import ControlPlane
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
CONTROLLERS = ",".join(
    f"{name}-controller"
    for name in (
        "persistentvolume-binder",
        "persistentvolume-protection",
        "persistentvolumeclaim-protection",
    )
)
ACCOUNT = "modelcache-csi-controller"


@pytest.fixture(scope="module")
def classes(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The chart's controller, as processes of this machine."""
    if not foreign.PROVISIONER.exists():
        pytest.skip("csi-provisioner is not there: run `make test`")
    folder = tmp_path_factory.mktemp("provisioner")
    socket = folder / "csi.sock"
    kubectl = Kubectl(plane, folder)
    objects = rendered({"csi.controller.enabled": True})
    chosen = [
        each
        for each in objects
        if each["metadata"]["name"] == ACCOUNT or each["kind"] == "CSIDriver"
    ]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kubectl.apply([namespace, *chosen])
    (deployment,) = (each for each in chosen if each["kind"] == "Deployment")
    arguments = {
        container["name"]: [str(text).replace("/csi/", f"{folder}/") for text in container["args"]]
        for container in deployment["spec"]["template"]["spec"]["containers"]
    }
    kubeconfig = plane.kubeconfig(kubectl.token(ACCOUNT))
    driver = [sys.executable, "-m", "modelcache.main", *arguments["csi"]]
    sidecar = [str(foreign.PROVISIONER), *arguments["provisioner"], f"--kubeconfig={kubeconfig}"]
    with ExitStack() as stack:
        try:
            binder = plane.running("kube-controller-manager", f"--controllers={CONTROLLERS}")
            stack.enter_context(binder)
        except ServerUnavailable as error:
            pytest.skip(str(error))
        with (folder / "log").open("wb") as log:
            running = [
                subprocess.Popen(
                    command,
                    env={**os.environ, "NAMESPACE": NAMESPACE, "POD_NAME": "provisioner"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
                for command in (driver, sidecar)
            ]
        try:
            wait_until(socket.exists)
            yield
        finally:
            for process in running:
                process.terminate()
                process.wait()
            kubectl.delete(chosen)
            print((folder / "log").read_text(errors="replace")[-4000:])


def claim(client: Client, name: str, parameters: dict[str, str]) -> None:
    """A class and a claim of it."""
    client.create(
        StorageClass.from_dict(
            {
                "metadata": {"name": name},
                "provisioner": "csi.modelcache.io",
                "parameters": parameters,
                "reclaimPolicy": "Delete",
            }
        )
    )
    client.create(
        PersistentVolumeClaim.from_dict(
            {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "accessModes": ["ReadOnlyMany"],
                    "storageClassName": name,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        )
    )


def bound(client: Client, name: str) -> PersistentVolume | None:
    found = client.get(PersistentVolumeClaim, name, namespace="default")
    if found.status is None or found.status.phase != "Bound":
        return None
    assert found.spec is not None
    return client.get(PersistentVolume, str(found.spec.volumeName))


def is_gone(client: Client, name: str) -> bool:
    try:
        client.get(PersistentVolume, name)
    except ApiError as error:
        return error.status.code == 404
    return False


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


@pytest.mark.kernel
@needs_root
@pytest.mark.usefixtures("classes")
def test_a_claim_becomes_a_volume_that_can_be_mounted(
    client: Client, models: Models, tmp_path: Path
):
    ref = str(ref_to(models.add("m"), "m"))
    claim(client, "llama", {"model": ref})
    volume = wait_until(lambda: bound(client, "llama"))
    assert volume.spec is not None
    csi = volume.spec.csi
    assert csi is not None
    assert csi.volumeAttributes is not None
    assert csi.volumeAttributes["model"] == ref
    assert volume.spec.accessModes == ["ReadOnlyMany"]
    with targets(tmp_path / "pods") as pods:
        chosen = node_settings(
            tmp_path / "store",
            node="n",
            socket=tmp_path / "a.sock",
            listen="",
            volume_roots=(str(pods),),
        )
        with running_driver(chosen, tmp_path / "csi.sock") as driver:
            driver.ask(
                "NodePublishVolume",
                volume_id=csi.volumeHandle,
                target_path=str(pods / "a"),
                volume_capability=mount_capability(),
                volume_context=dict(csi.volumeAttributes),
            )
            (mounted,) = mounts_at(pods / "a")
            assert mounted.read_only
            driver.ask.unpublish(pods / "a", volume_id=csi.volumeHandle)
    client.delete(PersistentVolumeClaim, "llama", namespace="default")
    name = str(volume.metadata and volume.metadata.name)
    wait_until(lambda: is_gone(client, name))


@pytest.mark.usefixtures("classes")
def test_a_class_that_names_no_model_is_told_in_the_claims_events(client: Client):
    claim(client, "wrong", {"model": "s4://nowhere/m"})

    def said() -> str:
        found: Any = client.list(
            Event, namespace="default", fields={"involvedObject.name": "wrong"}
        )
        return next((e.message for e in found if e.reason == "ProvisioningFailed"), "")

    assert "unknown scheme 's4'" in wait_until(said)
