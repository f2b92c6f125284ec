"""The webhook over HTTPS."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelcache.errors import InvalidConfig
from modelcache.faces.webhook.app import BODY_BYTES_MAX
from modelcache.faces.webhook.serving import bind
from modelcache.faces.webhook.tls import CertificateFiles
from tests.faces.webhook.servers import Hook, hook
from tests.faces.webhook.support import LLAMA, operations_in, pod, review
from tests.servers.certificates import Certificates


@pytest.fixture
def running(certificates: Certificates) -> Iterator[Hook]:
    with hook(CertificateFiles(certificates.cert_file, certificates.key_file)) as found:
        yield found


@pytest.fixture
def client(running: Hook, certificates: Certificates) -> Iterator[httpx2.Client]:
    with running.client(certificates.ca_file) as made:
        yield made


def counted(client: httpx2.Client) -> dict[str, float]:
    return {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "modelcache_webhook_requests_total"
    }


def test_reviews_are_answered_and_counted(client: httpx2.Client):
    answer = client.post("/mutate?timeout=10s", json=review(pod(f"{LLAMA}=/m")))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert operations_in(answer.json()["response"])
    client.post("/mutate", json=review(pod()))
    client.post("/mutate", json=review(pod("s4://x")))
    client.post("/mutate", content=b"x")
    assert counted(client) == {
        "patched": 1,
        "unchanged": 1,
        "denied": 1,
        "failed": 0,
        "invalid": 1,
    }


def test_probes_and_metrics(client: httpx2.Client):
    assert client.get("/healthz").text == "ok"
    assert client.get("/readyz").text == "ok"
    text = client.get("/metrics").text
    assert "modelcache_webhook_request_seconds_bucket" in text
    assert "modelcache_webhook_certificate_end_timestamp_seconds 1." in text
    assert client.get("/mutate").status_code == 405
    assert client.get("/").status_code == 404


def test_a_pod_of_the_largest_size_is_taken_and_more_is_not(client: httpx2.Client):
    filling = "x" * (BODY_BYTES_MAX - 10_000)
    question = review(pod(f"{LLAMA}=/m", note=filling))
    assert client.post("/mutate", json=question).status_code == 200

    def chunks() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x" * (1 << 20)

    for content in (b"x" * (BODY_BYTES_MAX + 1), chunks()):
        # The connection is closed on what is still coming, which may reach the client first.
        with suppress(httpx2.TransportError):
            assert client.post("/mutate", content=content).status_code == 413
    assert counted(client)["invalid"] == 2


def test_it_goes_on_answering_for_a_moment_after_it_was_told_to_end(certificates: Certificates):
    ending = threading.Event()
    source = CertificateFiles(certificates.cert_file, certificates.key_file)
    with hook(source, linger_s=1.0, ending=ending) as found:
        with found.client(certificates.ca_file) as client:
            assert client.get("/readyz").status_code == 200
            ending.set()
            until_s = monotonic() + 10
            while client.get("/readyz").status_code != 503:
                assert monotonic() < until_s
            assert client.post("/mutate", json=review(pod())).status_code == 200
        while not found.log.named("webhook_stopped"):
            assert monotonic() < until_s
            sleep(0.02)
        with pytest.raises(OSError, match=r".*"):
            socket.create_connection(("127.0.0.1", found.port), timeout=1).close()


def test_an_address_that_is_taken_is_told():
    with (
        bind("127.0.0.1", 0) as first,
        pytest.raises(InvalidConfig, match=r"cannot listen on 127\.0\.0\.1:.*in use"),
    ):
        bind("127.0.0.1", first.getsockname()[1])


def test_an_answers_body_does_not_wait_for_its_head_to_be_acknowledged():
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        taken, _ = listener.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_both_families_are_answered():
    with bind("::", 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
