"""When a controller lives, and when it is ready."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelcache.faces.controller.health import STALLED_S, Health
from modelcache.faces.controller.showing import showing
from modelcache.faces.webhook.serving import bind


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
def asking(health: Health) -> Iterator[httpx2.Client]:
    with (
        bind("127.0.0.1", 0) as listener,
        showing(health, listener),
        httpx2.Client(base_url=url(listener), trust_env=False) as client,
    ):
        yield client


def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_one_that_waits_is_ready_once_the_api_server_has_answered(
    health: Health, asking: httpx2.Client
):
    assert asking.get("/healthz").status_code == 200
    answer = asking.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "the API server has not answered yet")
    health.asked(heard=False)
    assert asking.get("/readyz").status_code == 503
    health.asked(heard=True)
    assert asking.get("/readyz").status_code == 200


def test_one_that_works_is_ready_after_its_first_round(health: Health, asking: httpx2.Client):
    health.asked(heard=True)
    health.leads(leading=True)
    assert asking.get("/readyz").text == "not all objects are known yet"
    health.rounded(0.1)
    assert asking.get("/readyz").status_code == 200


def test_an_api_server_that_is_away_does_not_make_it_ill(health: Health, clock: Clock):
    health.asked(heard=True)
    clock.now_s = STALLED_S
    health.asked(heard=False)
    clock.now_s = 2 * STALLED_S - 1
    assert health.not_alive() is None
    assert health.not_ready() is None


def test_one_that_does_not_move_is_to_be_started_anew(
    health: Health, clock: Clock, asking: httpx2.Client
):
    health.asked(heard=True)
    health.leads(leading=True)
    health.rounded(0.1)
    clock.now_s = STALLED_S + 1
    health.asked(heard=True)  # renewing the Lease is not working
    assert asking.get("/healthz").status_code == 503
    assert "nothing has moved for 181 s" in asking.get("/readyz").text
    health.looked("Node", failed=True)
    assert asking.get("/healthz").status_code == 200


def test_metrics_tell_what_it_did(health: Health, asking: httpx2.Client):
    health.leads(leading=True)
    health.looked("Pod", failed=True)
    health.rounded(0.3)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(asking.get("/metrics").text)
        for sample in family.samples
    }
    assert found["modelcache_controller_leading",] == 1
    assert found["modelcache_controller_looks_total", "Pod", "failed"] == 1
    assert found["modelcache_controller_looks_total", "Node", "ok"] == 0
    assert found["modelcache_controller_round_seconds_count",] == 1
    assert found["modelcache_controller_last_round_timestamp_seconds",] > 0
