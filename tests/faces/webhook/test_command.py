"""`modelcache webhook` as a process."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from lightkube import ApiError, Client
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from tests.cluster.support import wait_until
from tests.faces.webhook.conftest import CONFIGURATION, Register
from tests.faces.webhook.support import LLAMA, LLAMA_VOLUME, pod, review
from tests.main.support import Shell, finish
from tests.servers.certificates import Certificates
from tests.servers.control_plane import ControlPlane
from tests.servers.process import free_port


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "store")


@contextmanager
def started(shell: Shell, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The process; it may not listen yet."""
    process = shell.start("webhook", "--listen", f"127.0.0.1:{port}", *options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str], client: httpx2.Client) -> bool:
    assert process.poll() is None, process.communicate()
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


SIGNED = ("--self-signed", "--service", "hook", "--namespace", "ns", "--configuration", "x")
FILES = ("--cert-file", "c", "--key-file", "k")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "needs --cert-file and --key-file, or --self-signed"),
        (["--cert-file", "c"], "--cert-file and --key-file go together"),
        ([*FILES, "--self-signed"], "leave --cert-file and --key-file out"),
        (["--self-signed"], "needs --service and --namespace and --configuration"),
        ([*SIGNED[:-2]], "needs --configuration"),
        ([*FILES, "--service", "x"], "--service is for --self-signed"),
        ([*FILES, "--name", "x"], "--name is for --self-signed"),
        ([*SIGNED, "--name", "sp ace"], "'sp ace' cannot be the name"),
        ([*SIGNED, "--kubeconfig", "/nowhere"], "/nowhere"),
        ([*FILES, "--listen", "9443"], "has no port"),
        ([*FILES, "--linger", "long"], "'long' is not a duration"),
        ([*FILES, "--log-level", "loud"], "--log-level"),
        ([*FILES, "--no-affinity"], "cannot read c"),
        ([*FILES, "--nonsense"], "--nonsense"),
    ],
)
def test_bad_flags_are_told_in_one_line(shell: Shell, options: list[str], complaint: str):
    done = shell.call("webhook", "--listen", "127.0.0.1:0", *options)
    assert done.code == 2
    assert complaint in done.complaint


def test_with_files_it_needs_no_cluster_and_ends_in_order(shell: Shell, certificates: Certificates):
    port = free_port()
    trusting = ssl.create_default_context(cafile=str(certificates.ca_file))
    files = ("--cert-file", str(certificates.cert_file), "--key-file", str(certificates.key_file))
    with (
        started(shell, port, *files, "--no-affinity", "--linger", "0s") as process,
        httpx2.Client(
            base_url=f"https://127.0.0.1:{port}", verify=trusting, trust_env=False
        ) as client,
    ):
        wait_until(lambda: ready(process, client))
        answer = client.post("/mutate", json=review(pod(f"{LLAMA}=/m"))).json()
        assert answer["response"]["patch"]
        process.send_signal(signal.SIGTERM)
        done = finish(process)
    assert (done.code, done.out) == (0, "")
    assert [json.loads(line)["event"] for line in done.err.splitlines()] == [
        "webhook_ready",
        "webhook_stopping",
        "webhook_stopped",
    ]


@pytest.mark.cluster
def test_replicas_with_certificates_of_their_own_making_serve_a_cluster(
    shell: Shell, client: Client, plane: ControlPlane, register: Register, namespace: str
):
    options = (
        *("--self-signed", "--service", "hook", "--namespace", namespace),
        *("--configuration", CONFIGURATION, "--name", "127.0.0.1"),
        *("--kubeconfig", str(plane.kubeconfig()), "--linger", "0s"),
    )
    written = pod(f"{LLAMA}=/m")
    written["metadata"]["namespace"] = namespace

    def volumes() -> list[str]:
        try:
            made = client.create(Pod.from_dict(written), dry_run=True)
        except ApiError as error:
            if "failed calling webhook" in str(error):  # it does not listen, or is not trusted yet
                return []
            raise
        assert made.spec is not None
        return [volume.name for volume in made.spec.volumes or ()]

    one, two = free_port(), free_port()
    register(f"https://127.0.0.1:{one}", None, policy="Fail")
    with started(shell, one, *options) as first, started(shell, two, *options) as second:
        assert wait_until(volumes) == [LLAMA_VOLUME]
        path = "/webhooks/0/clientConfig/url"
        patch = [{"op": "replace", "path": path, "value": f"https://127.0.0.1:{two}/mutate"}]
        client.patch(MutatingWebhookConfiguration, CONFIGURATION, patch, patch_type=PatchType.JSON)
        assert wait_until(volumes) == [LLAMA_VOLUME]
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
            assert finish(process).code == 0
