"""A scaler that begins anew recommends what the one before it did: processes, with their rights."""

from __future__ import annotations

import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client
from lightkube.types import PatchType
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from modelcache.faces.kubernetes.objects import ModelScaleCheckpoint
from modelcache.faces.scaler.checkpoint import checkpoint_of
from tests.cluster.autoscaling import ScalerProcess, account, begin, end
from tests.cluster.serving import (
    become,
    make_gpu_node,
    make_scale,
    make_server_pod,
    remove_scales,
    status_of,
    tell,
)
from tests.cluster.support import wait_until
from tests.servers.control_plane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
METRIC = "gateway_requests_per_second"
LOW, HIGH = 10.0, 30.0
PHASE = 4  # readings of each
USUAL = 15  # (LOW + (HIGH - LOW)) / 2: it may grow by as much as it did before
PRIOR = 5  # LOW / 2, where nobody knows that it ever grew
READINGS_MIN = 40  # 20 of them are to have one two seconds later, with room
STARTS = 5


@dataclass
class Load:
    """Requests a second as a gateway tells them: low and high in turn, a step at each reading."""

    port: int = 0
    readings: int = 0
    settled: threading.Event = field(default_factory=threading.Event)

    def now(self) -> float:
        """Low for good, once it has settled."""
        self.readings += 1
        high = not self.settled.is_set() and self.readings % (2 * PHASE) >= PHASE
        return HIGH if high else LOW

    @property
    def demand(self) -> dict[str, Any]:
        """As a ModelScale states it."""
        pods = {
            "selector": {"app": "gateway"},
            "port": self.port,
            "metric": METRIC,
            "type": "gauge",
        }
        return {"intervalSeconds": 1, "pods": pods}


@contextmanager
def loaded() -> Iterator[Load]:
    made = Load()
    registry = CollectorRegistry()
    Gauge(METRIC, "…", registry=registry).set_function(made.now)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    made.port = server.server_address[1]
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def _cluster(client: Client) -> Iterator[None]:
    make_gpu_node(client, "g1", gpus=16)
    tell(client, "g1", 100)
    make_server_pod(client, "gateway", app="gateway", node="g1", gpus=1)
    become(client, "gateway", ready=True)
    yield
    remove_scales(client, "g1")


def told(scaler: ScalerProcess, metric: str, **labels: str) -> float | None:
    """One number of its page; None where it has none yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{scaler.plain}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    wanted = labels.items()
    return next(
        (
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == metric and wanted <= sample.labels.items()
        ),
        None,
    )


def recommended(scaler: ScalerProcess) -> float | None:
    return told(scaler, "modelcache_recommended_replicas", model="llama")


def first_recommended(scaler: ScalerProcess) -> float:
    """What it says as soon as it says anything."""
    found: list[float] = []

    def look() -> bool:
        value = recommended(scaler)
        found.extend([] if value is None else [value])
        return bool(found)

    wait_until(look)
    return found[0]


def lead_s(scaler: ScalerProcess) -> float | None:
    return told(
        scaler, "modelcache_predicted_start_seconds", model="llama", tier="warm", quantile="0.9"
    )


def spec_of(client: Client) -> dict[str, Any]:
    """Of the one checkpoint, if there is one."""
    found = [item["spec"] for item in client.list(ModelScaleCheckpoint, namespace="*")]
    return found[0] if found else {}


def starting(client: Client, count: int) -> bool:
    return bool(status_of(client, "llama").get("startingReplicas") == count)


def warm_starts(client: Client, count: int) -> bool:
    status = status_of(client, "llama")
    return bool(status.get("ready") and status["ready"]["warm"]["starts"] == count)


@pytest.mark.usefixtures("_cluster")
def test_a_scaler_goes_on_where_the_last_one_ended(
    client: Client, plane: ControlPlane, tmp_path: Path
):
    """Ended by SIGTERM, then by SIGKILL; then with a checkpoint that nobody can read."""
    with ExitStack() as stack:
        load = stack.enter_context(loaded())
        _, config = stack.enter_context(account(plane, tmp_path))
        make_scale(
            client,
            "llama",
            demand=load.demand,
            costs={"late": 99, "idle": 1},
            delaySeconds=0,
            readySeconds={"warm": 60, "cold": 2},
            replica={"gpus": 1, "requestsPerSecond": 2},
        )

        def next_one(name: str, every: str = "1h") -> ScalerProcess:
            made = begin(config, tmp_path / f"{name}.log", f"--checkpoint-every={every}")
            stack.callback(end, made)
            return made

        first = next_one("first")
        _start_some(client)
        wait_until(lambda: load.readings >= READINGS_MIN, 90)
        load.settled.set()
        wait_until(lambda: recommended(first) == USUAL)
        assert lead_s(first) == 2
        # A start is under way when it ends: on a node that has the model, and not a fresh one.
        uid = make_server_pod(client, "late", app="llama", node="g1", gpus=1).metadata.uid
        become(client, "late", ready=False, after_s=60)
        wait_until(partial(starting, client, 1))
        assert end(first) == 0, first.log.read_text()[-3000:]
        (left,) = map(checkpoint_of, client.list(ModelScaleCheckpoint, namespace="*"))
        assert len(left.starts.warm) == STARTS
        assert left.starts.under_way == {uid: True}  # so it was written when it was told to end

        second = next_one("second", every="5s")
        assert first_recommended(second) == USUAL
        assert lead_s(second) == 2
        age_s = told(second, "modelcache_scaler_checkpoint_age_seconds", model="llama")
        assert age_s is not None
        become(client, "late", ready=True, after_s=2)
        wait_until(partial(warm_starts, client, STARTS + 1))  # it was seen as a warm one
        wait_until(lambda: spec_of(client)["starts"] == STARTS + 1)
        second.process.send_signal(signal.SIGKILL)
        second.process.wait()

        third = next_one("third")
        assert first_recommended(third) == USUAL
        assert lead_s(third) == 2
        third.process.send_signal(signal.SIGKILL)
        third.process.wait()

        spoiled = {"spec": {"content": "c3BvaWxlZA=="}}
        _patch(client, ModelScaleCheckpoint, spoiled)
        fourth = next_one("fourth")
        assert first_recommended(fourth) == PRIOR
        assert lead_s(fourth) == 60
        assert fourth.log.read_text().count("checkpoint_unusable") == 1
        fourth.process.send_signal(signal.SIGKILL)
        fourth.process.wait()


def _start_some(client: Client) -> None:
    """Replicas that take two seconds each, in the eyes of a scaler that looks."""
    for number in range(STARTS):
        name = f"p{number}"
        make_server_pod(client, name, app="llama", node="g1", gpus=1)
        become(client, name, ready=False)
        wait_until(partial(starting, client, 1))
        become(client, name, ready=True, after_s=2)
        wait_until(partial(starting, client, 0))


def _patch(client: Client, kind: type[Any], change: dict[str, Any]) -> None:
    client.patch(kind, "llama", change, namespace="default", patch_type=PatchType.MERGE)
