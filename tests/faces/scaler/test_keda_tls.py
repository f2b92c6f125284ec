"""KEDA's port over TLS: whom gRPC's own client trusts, and whom we let in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from lightkube import Client, KubeConfig

from modelcache.errors import InvalidConfig
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.cluster import Cluster
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.life import Scaler
from modelcache.faces.scaler.protocol import externalscaler_pb2 as protocol
from modelcache.faces.scaler.recording import EVERY_S
from modelcache.faces.scaler.scraping import Scraper
from modelcache.faces.webhook import tls
from modelcache.faces.webhook.tls import CertificateFiles
from tests.cluster.support import wait_until
from tests.faces.scaler.keda import serving
from tests.faces.webhook.support import Remembered
from tests.servers.certificates import Authority, Certificates

METHOD = "/externalscaler.ExternalScaler/GetMetricSpec"
NAMES = ("IP:127.0.0.1", "DNS:localhost")
ANSWER_S = 10.0


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tls.keep_fresh.__kwdefaults__, "every_s", 0.05)


@pytest.fixture
def scaler() -> Iterator[Scaler]:
    """One that watches nothing: what is asked here takes no cluster."""
    config = KubeConfig.from_dict(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
            "users": [{"name": "x", "user": {"token": "x"}}],
        }
    )
    scraper = Scraper("", None)
    with Client(config=config) as client:
        yield Scaler(
            Cluster(client), Demand(scraper), CheckpointStore(client), checkpoint_every_s=EVERY_S
        )
    scraper.close()


@pytest.fixture
def servers(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "servers")


@pytest.fixture
def clients(tmp_path: Path) -> Authority:
    """Another one, which signs for KEDA."""
    return Authority(tmp_path / "clients")


def client_of(authority: Authority, name: str = "keda") -> Certificates:
    return authority.issue(name, name, (f"DNS:{name}",), usage="clientAuth")


@contextmanager
def channel(port: int, trusting: Path, shown: Certificates | None = None) -> Iterator[Any]:
    credentials = grpc.ssl_channel_credentials(
        trusting.read_bytes(),
        shown.key_file.read_bytes() if shown else None,
        shown.cert_file.read_bytes() if shown else None,
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as made:
        yield made.unary_unary(
            METHOD,
            request_serializer=protocol.ScaledObjectRef.SerializeToString,
            response_deserializer=protocol.GetMetricSpecResponse.FromString,
        )


def answers(call: Any) -> bool:
    asked = protocol.ScaledObjectRef(
        name="llama", namespace="default", scalerMetadata={"tlsClientCert": "…", "caCert": "…"}
    )
    try:
        return bool(call(asked, timeout=ANSWER_S).metricSpecs[0].targetSize == 1)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


def asking(port: int, trusting: Path, shown: Certificates | None = None) -> bool:
    """Whether a new connection gets an answer."""
    with channel(port, trusting, shown) as call:
        return answers(call)


def test_a_client_that_trusts_our_authority_is_answered(
    scaler: Scaler, servers: Authority, clients: Authority
):
    made = servers.issue("server", "keda", NAMES)
    source = CertificateFiles(made.cert_file, made.key_file)
    with serving(scaler.outlooks, scaler.metrics, source) as port:
        assert asking(port, servers.ca_file)
        assert not asking(port, clients.ca_file)
        with grpc.insecure_channel(f"localhost:{port}") as plain:
            assert not answers(
                plain.unary_unary(
                    METHOD,
                    request_serializer=protocol.ScaledObjectRef.SerializeToString,
                    response_deserializer=protocol.GetMetricSpecResponse.FromString,
                )
            )
    end = x509.load_pem_x509_certificate(made.cert_file.read_bytes()).not_valid_after_utc
    name = "modelcache_scaler_certificate_end_timestamp_seconds"
    assert scaler.metrics.registry.get_sample_value(name, {"face": "keda"}) == end.timestamp()


def test_whoever_shows_nothing_of_the_clients_authority_is_turned_away(
    scaler: Scaler, servers: Authority, clients: Authority
):
    made = servers.issue("server", "keda", NAMES)
    source = CertificateFiles(made.cert_file, made.key_file, clients.ca_file)
    with serving(scaler.outlooks, scaler.metrics, source) as port:
        assert asking(port, servers.ca_file, client_of(clients))
        assert not asking(port, servers.ca_file)
        assert not asking(port, servers.ca_file, client_of(servers))


def test_files_that_change_count_for_new_connections(
    scaler: Scaler, servers: Authority, clients: Authority, tmp_path: Path
):
    made = servers.issue("server", "keda", NAMES)
    authority = tmp_path / "authority.pem"
    authority.write_bytes(clients.ca_file.read_bytes())
    log = Remembered()
    source = CertificateFiles(made.cert_file, made.key_file, authority)
    keda = client_of(clients)
    with (
        serving(scaler.outlooks, scaler.metrics, source, log) as port,
        channel(port, servers.ca_file, keda) as old,
    ):
        assert answers(old)
        # Another authority for clients.
        others = Authority(tmp_path / "others")
        authority.write_bytes(others.ca_file.read_bytes())
        wait_until(lambda: len(log.named("certificate_changed")) == 1)
        assert not asking(port, servers.ca_file, keda)
        assert asking(port, servers.ca_file, client_of(others))
        # What cannot be used changes nothing: above all it lets nobody in.
        for text in ("", "no certificate"):
            told = len(log.named("certificate_not_renewed"))
            authority.write_text(text)
            wait_until(lambda told=told: len(log.named("certificate_not_renewed")) > told)
            assert not asking(port, servers.ca_file)
            assert asking(port, servers.ca_file, client_of(others))
        authority.write_bytes(others.ca_file.read_bytes())
        # Another certificate of ours, of another authority.
        second = Authority(tmp_path / "second")
        renewed = second.issue("server", "keda", NAMES)
        made.key_file.write_bytes(renewed.key_file.read_bytes())
        made.cert_file.write_bytes(renewed.cert_file.read_bytes())
        wait_until(lambda: len(log.named("certificate_changed")) == 2)
        assert asking(port, second.ca_file, client_of(others))
        assert not asking(port, servers.ca_file, client_of(others))
        assert answers(old)  # what is open goes on


def test_what_cannot_be_shown_is_told_at_once(
    scaler: Scaler, servers: Authority, clients: Authority, tmp_path: Path
):
    made = servers.issue("server", "keda", NAMES)
    empty = tmp_path / "empty"
    empty.touch()
    other = client_of(clients)
    for source, complaint in (
        (CertificateFiles(made.cert_file, other.key_file), "not usable"),
        (CertificateFiles(made.cert_file, made.key_file, empty), "is empty"),
        (CertificateFiles(made.cert_file, made.key_file, made.key_file), "authority of clients"),
        (CertificateFiles(made.cert_file, made.key_file, tmp_path / "nowhere"), "cannot read"),
    ):
        with (
            pytest.raises(InvalidConfig, match=complaint),
            serving(scaler.outlooks, scaler.metrics, source),
        ):
            pass
