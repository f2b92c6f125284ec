"""Certificates that replicas share, on a real API server which has to believe them."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import yaml
from cryptography import x509
from lightkube import ApiError, Client, codecs
from lightkube.models.authentication_v1 import TokenRequestSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.rbac_v1 import RoleRef, Subject
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Pod, Secret, ServiceAccount, ServiceAccountToken
from lightkube.resources.rbac_authorization_v1 import (
    ClusterRoleBinding,
    RoleBinding,
)

from modelcache.errors import Forbidden, InvalidConfig
from modelcache.faces.webhook import tls
from modelcache.faces.webhook.shared import SharedCertificates, Where, service_hosts
from tests.cluster.support import wait_until
from tests.faces.webhook.conftest import CONFIGURATION, Register
from tests.faces.webhook.servers import hook
from tests.faces.webhook.support import LLAMA, Remembered, pod
from tests.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster

DAY = timedelta(days=1)
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "webhook.md"
SECRET = "modelcache-webhook-certificates"  # noqa: S105 - an object's name


class Clock:
    """A time that is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def where(namespace: str) -> Where:
    hosts = (*service_hosts("hook", namespace), "127.0.0.1")
    return Where(namespace, SECRET, CONFIGURATION, hosts)


@pytest.fixture
def replica(client: Client, where: Where) -> Callable[..., SharedCertificates]:
    """Makes one more."""
    return lambda **more: SharedCertificates(client, where, Remembered(), **more)


def bundle(client: Client) -> str:
    found = client.get(MutatingWebhookConfiguration, CONFIGURATION)
    assert found.webhooks is not None
    return base64.b64decode(found.webhooks[0].clientConfig.caBundle or "").decode()


def authorities(client: Client) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle(client).encode())


def test_replicas_that_start_together_agree(
    client: Client, register: Register, where: Where, plane: ControlPlane
):
    register("https://127.0.0.1:1", None)
    together = Barrier(8)

    def start(_: int) -> tls.Pair:
        with plane.client() as own:
            replica = SharedCertificates(own, where, Remembered())
            together.wait()
            return replica.current()

    with ThreadPoolExecutor(8) as pool:
        shown = set(pool.map(start, range(8)))
    assert len(shown) == 1
    kept = client.get(Secret, SECRET, namespace=where.namespace)
    assert kept.data is not None
    assert {base64.b64decode(kept.data["tls.crt"])} == {pair.certificate for pair in shown}
    assert base64.b64decode(kept.data["ca.crt"]).decode() == bundle(client)


def test_a_year_passes_and_the_api_server_still_believes(
    client: Client,
    register: Register,
    namespace: str,
    replica: Callable[..., SharedCertificates],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(tls.keep_fresh.__kwdefaults__, "every_s", 0.05)
    now = datetime.now(UTC)
    clock = Clock(now - 300 * DAY)
    register("https://127.0.0.1:1", None)
    source = replica(now=clock)
    first = source.current()
    seen = {each.serial_number for each in authorities(client)}
    while clock.now < now - 25 * DAY:
        # At last one is issued that is believed now, and is to be renewed now.
        clock.now = now - 25 * DAY if clock.now > now - 50 * DAY else clock.now + 6 * DAY
        source.current()
        seen.update(each.serial_number for each in authorities(client))
    assert len(seen) == 2
    assert len(authorities(client)) == 2  # the old one lives for two months more
    with hook(source) as running:
        client.delete(MutatingWebhookConfiguration, CONFIGURATION)
        register(running.url, None, policy="Fail")
        wait_until(lambda: bundle(client))
        wait_until(lambda: _mutated(client, namespace))
        old = _shown(running.port, bundle(client))
        clock.now = now
        wait_until(lambda: running.log.named("certificate_changed"))
        assert _shown(running.port, bundle(client)) != old
        assert _mutated(client, namespace)
    assert source.current() != first


def _shown(port: int, trusted: str) -> bytes | None:
    context = ssl.create_default_context(cadata=trusted)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def _mutated(client: Client, namespace: str) -> bool:
    """Whether the API server reaches the webhook."""
    written = pod(f"{LLAMA}=/m")
    written["metadata"]["namespace"] = namespace
    try:
        found = client.create(Pod.from_dict(written), dry_run=True)
    except ApiError as error:
        if "failed calling webhook" in str(error):  # it has not noticed the bundle yet
            return False
        raise
    assert found.spec is not None
    return bool(found.spec.volumes)


def test_a_bundle_that_an_installer_overwrites_is_written_again(
    client: Client, register: Register, replica: Callable[..., SharedCertificates]
):
    register("https://127.0.0.1:1", None)
    source = replica()
    source.current()
    before = bundle(client)
    client.delete(MutatingWebhookConfiguration, CONFIGURATION)
    register("https://127.0.0.1:1", None)
    assert bundle(client) == ""
    source.current()
    assert bundle(client) == before
    version = client.get(MutatingWebhookConfiguration, CONFIGURATION).metadata
    source.current()
    assert client.get(MutatingWebhookConfiguration, CONFIGURATION).metadata == version


def test_a_configuration_that_comes_later_is_no_hindrance(
    client: Client, register: Register, where: Where
):
    log = Remembered()
    source = SharedCertificates(client, where, log)
    pair = source.current()
    assert log.named("webhook_configuration_missing") == [{"name": CONFIGURATION}]
    register("https://127.0.0.1:1", None)
    assert source.current() == pair
    assert bundle(client)


def test_an_empty_secret_is_filled_and_keeps_its_labels(
    client: Client, where: Where, replica: Callable[..., SharedCertificates]
):
    metadata = ObjectMeta(name=SECRET, namespace=where.namespace, labels={"of": "installer"})
    client.create(Secret(metadata=metadata))
    pair = replica().current()
    assert replica().current() == pair
    kept = client.get(Secret, SECRET, namespace=where.namespace)
    assert kept.metadata is not None
    assert kept.metadata.labels == {"of": "installer"}


def test_a_secret_that_is_broken_is_made_anew(
    client: Client, where: Where, replica: Callable[..., SharedCertificates]
):
    pair = replica().current()
    kept = client.get(Secret, SECRET, namespace=where.namespace)
    assert kept.data is not None
    del kept.data["tls.key"]
    client.replace(kept)
    assert replica().current() != pair


def test_somebody_elses_secret_is_left_alone(
    client: Client, where: Where, replica: Callable[..., SharedCertificates]
):
    metadata = ObjectMeta(name=SECRET, namespace=where.namespace)
    theirs = {"tls.crt": "eA==", "tls.key": "eA=="}
    client.create(Secret(metadata=metadata, data=theirs))
    with pytest.raises(InvalidConfig, match="holds something else; name another with --secret"):
        replica().current()
    assert client.get(Secret, SECRET, namespace=where.namespace).data == theirs


def test_the_rights_that_the_guide_names_are_what_is_needed(
    client: Client, plane: ControlPlane, register: Register, where: Where
):
    account = ObjectMeta(name="hook", namespace=where.namespace)
    client.create(ServiceAccount(metadata=account))
    asked = TokenRequestSpec(audiences=["https://kubernetes.default.svc"])
    made = client.create(
        ServiceAccountToken(spec=asked, metadata=ObjectMeta()), "hook", namespace=where.namespace
    )
    assert made.status is not None
    register("https://127.0.0.1:1", None)
    with plane.client(made.status.token) as limited:
        source = SharedCertificates(limited, where, Remembered())
        with pytest.raises(Forbidden, match=f"Secret {where.namespace}/{SECRET}: .*cannot get"):
            source.current()
        _grant(client, where)
        pair = wait_until(lambda: _try(source))
        assert bundle(client)
        later = Clock(datetime.now(UTC) + 25 * DAY)
        assert SharedCertificates(limited, where, Remembered(), now=later).current() != pair


def _try(source: SharedCertificates) -> tls.Pair | None:
    try:
        return source.current()
    except Forbidden:  # roles are noticed a moment after they are made
        return None


def _grant(client: Client, where: Where) -> None:
    blocks = GUIDE.read_text().split("```yaml\n")[1:]
    written = [
        document for block in blocks for document in yaml.safe_load_all(block.partition("```")[0])
    ]
    roles: dict[str, Any] = {each["kind"]: each for each in written if "rules" in each}
    subject = Subject(kind="ServiceAccount", name="hook", namespace=where.namespace)
    (wide, narrow) = roles["ClusterRole"], roles["Role"]
    wide["metadata"]["name"] = narrow["metadata"]["name"] = f"hook-{where.namespace}"
    wide["rules"][1]["resourceNames"] = [CONFIGURATION]
    narrow["metadata"]["namespace"] = where.namespace
    metadata = ObjectMeta(name=f"hook-{where.namespace}", namespace=where.namespace)
    for role, binding in ((wide, ClusterRoleBinding), (narrow, RoleBinding)):
        client.create(codecs.from_dict(role))
        reference = RoleRef(
            apiGroup="rbac.authorization.k8s.io", kind=role["kind"], name=metadata.name or ""
        )
        name = metadata if binding is RoleBinding else ObjectMeta(name=metadata.name)
        client.create(binding(metadata=name, subjects=[subject], roleRef=reference))
