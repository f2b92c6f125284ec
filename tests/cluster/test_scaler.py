"""The scaler on a real API server: what it makes of nodes, pods, agents' reports and requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lightkube import ApiError, Client
from lightkube.resources.core_v1 import Node, Pod
from lightkube.types import PatchType
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from modelcache.faces.kubernetes.objects import ModelScale, NodeModels
from modelcache.faces.scaler.life import Scaler
from modelcache.faces.scaler.plain import create_plain_app
from modelcache.faces.scaler.scraping import Scraper
from modelcache.faces.scaler.writing import Writing
from tests.cluster.serving import (
    LLAMA_ID,
    SIZE,
    become,
    make_gpu_node,
    make_scale,
    make_server_pod,
    requests_served,
    scaling,
    status_of,
    tell,
)
from tests.cluster.support import delete_pod, remove, wait_until
from tests.servers.control_plane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
NODES = ("g1", "g2")


@pytest.fixture
def nodes(client: Client) -> Iterator[tuple[str, ...]]:
    for name in NODES:
        make_gpu_node(client, name)
    yield NODES
    for pod in client.list(Pod, namespace="default"):
        delete_pod(client, str(pod.metadata.name))
    for item in client.list(ModelScale, namespace="*"):
        client.delete(ModelScale, item.metadata.name, namespace=item.metadata.namespace)
    for name in (*NODES, "g3"):
        remove(client, Node, name)
        remove(client, NodeModels, name)


@contextmanager
def writing(plane: ControlPlane, scraper: Scraper | None = None) -> Iterator[Scaler]:
    """A scaler that writes statuses too."""
    over = threading.Event()
    with plane.client() as client, scaling(client, scraper) as scaler:
        writer = Writing(client, scaler.cluster, scaler.outlooks, scaler.recording)
        thread = threading.Thread(target=writer.lead, args=(over,))
        thread.start()
        try:
            yield scaler
        finally:
            over.set()
            thread.join()


def shows(client: Client, name: str, **wanted: Any) -> dict[str, Any]:
    """The status, once it has these values."""

    def look() -> dict[str, Any] | None:
        found = status_of(client, name)
        return found if all(found.get(key) == value for key, value in wanted.items()) else None

    return wait_until(look)


@pytest.mark.usefixtures("nodes")
def test_warm_places_follow_agents_devices_and_pods(client: Client, plane: ControlPlane):
    make_scale(client, "llama")
    tell(client, "g1", 100)
    tell(client, "g2", 40, ready={"p50Seconds": 70, "p90Seconds": 90, "confident": True})
    with writing(plane):
        status = shows(client, "llama", warmNodes=1, warmSlots=2)
        assert (status["modelId"], status["missingBytes"]) == (LLAMA_ID, SIZE * 60 // 100)
        assert status["ready"]["cold"]["from"] == "predicted"
        assert status["ready"]["cold"]["p90Seconds"] == 150  # its weights, and a warm start's rest
        assert status["weightsReady"] == {"p50Seconds": 70, "p90Seconds": 90, "confident": True}
        assert "recommendedReplicas" not in status
        (condition,) = status["conditions"]
        assert (condition["status"], condition["reason"]) == ("False", "DemandUnknown")
        assert status["scaleUp"] == {"replicas": 1, "originBytes": 0, "seconds": 60}

        make_server_pod(client, "p1", app="llama", node="g1")
        shows(client, "llama", warmSlots=1, startingReplicas=1, readyReplicas=0)
        make_server_pod(client, "other", app="other", node="g1", gpus=3)
        shows(client, "llama", warmSlots=0, warmNodes=1)
        become(client, "p1", ready=True)
        shows(client, "llama", startingReplicas=0, readyReplicas=1)
        delete_pod(client, "other")
        shows(client, "llama", warmSlots=1)
        client.patch(Node, "g1", {"spec": {"unschedulable": True}}, patch_type=PatchType.MERGE)
        shows(client, "llama", warmSlots=0)
        tell(client, "g2", 100)
        shows(client, "llama", warmNodes=2, warmSlots=2)


@pytest.mark.usefixtures("nodes")
def test_places_that_several_models_could_take_are_shared(client: Client, plane: ControlPlane):
    make_scale(client, "one")
    make_scale(client, "two", replica={"gpus": 8, "requestsPerSecond": 1})
    tell(client, "g1", 100)
    with writing(plane):
        assert shows(client, "two", warmSlots=1)["warmSlotsShared"] == 1
        assert shows(client, "one", warmSlots=2)["warmSlotsShared"] == 0


@pytest.mark.usefixtures("nodes")
def test_replicas_are_recommended_from_what_pods_count(client: Client, plane: ControlPlane):
    with requests_served() as requests:
        make_scale(client, "llama", demand=requests.demand)
        tell(client, "g1", 100)
        make_server_pod(client, "p1", app="llama", node="g1")
        become(client, "p1", ready=True)
        over = threading.Event()

        def load() -> None:
            while not over.wait(0.05):
                requests.counter.inc(0.5)  # at most 10 a second

        thread = threading.Thread(target=load)
        thread.start()
        try:
            with writing(plane) as scaler:
                status = wait_until(
                    lambda: (
                        s if (s := status_of(client, "llama")).get("recommendedReplicas") else None
                    )
                )
                assert 0 < status["requestsPerSecond"] <= 11
                # Demand that has just begun seems to grow; never fewer than it takes right now.
                assert status["recommendedReplicas"] >= status["requestsPerSecond"] / 2
                assert status["conditions"][0]["status"] == "True"
                pages = TestClient(
                    create_plain_app(scaler.outlooks, scaler.metrics, scaler.not_ready)
                )
                assert pages.get("/readyz").status_code == 200
                found = {
                    sample.name: sample.value
                    for family in text_string_to_metric_families(pages.get("/metrics").text)
                    for sample in family.samples
                    if sample.labels.get("model") == "llama"
                }
                assert found["modelcache_ready_replicas"] == 1
                assert found["modelcache_recommended_replicas"] > 0
        finally:
            over.set()
            thread.join()


@pytest.mark.usefixtures("nodes")
def test_a_start_is_timed_from_binding_to_ready(client: Client, plane: ControlPlane):
    make_scale(client, "llama")
    tell(client, "g1", 100)
    with writing(plane):
        shows(client, "llama", warmNodes=1)
        for number in range(5):
            name = f"p{number}"
            make_server_pod(client, name, app="llama", node="g1", gpus=1)
            become(client, name, ready=False)
            shows(client, "llama", startingReplicas=1)
            become(client, name, ready=True, after_s=40 + number)
            shows(client, "llama", startingReplicas=0, readyReplicas=number + 1)
        warm = status_of(client, "llama")["ready"]["warm"]
        assert (warm["from"], warm["starts"]) == ("observed", 5)
        assert (warm["p50Seconds"], warm["p90Seconds"]) == (42, 44)
        make_server_pod(client, "lost", app="llama", node="g2", gpus=1)
        shows(client, "llama", startingReplicas=1)
        delete_pod(client, "lost")
        shows(client, "llama", abandonedStarts=1)


@pytest.mark.usefixtures("nodes")
def test_an_object_that_cannot_be_is_told_so(client: Client, plane: ControlPlane):
    make_scale(client, "wrong", model="s3:///nothing")
    with writing(plane):
        status = shows(client, "wrong", observedGeneration=1)
        (condition,) = status["conditions"]
        assert (condition["status"], condition["reason"]) == ("False", "Refused")
        assert condition["message"].startswith("model: ")
        good = {"spec": {"model": "a" * 64}}
        client.patch(ModelScale, "wrong", good, namespace="default", patch_type=PatchType.MERGE)
        tell(client, "g1", 100)
        shows(client, "wrong", warmNodes=1, observedGeneration=2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": "ftp://x"}, "should match"),
        ({"selector": {}}, "at least 1"),
        ({"replica": {"gpus": 0, "requestsPerSecond": 1}}, "greater than or equal to 1"),
        ({"replica": {"requestsPerSecond": 0}}, "greater than 0"),
        ({"costs": {"late": 0, "idle": 1}}, "greater than 0"),
        ({"demand": {}}, "one of the two"),
        ({"demand": {"pods": {"port": 1, "metric": "a b"}}}, "should match"),
        ({"demand": {"pods": {"port": 1, "metric": "a", "path": "http://x"}}}, "should match"),
    ],
)
def test_the_schema_refuses_what_cannot_be(client: Client, spec: dict[str, Any], words: str):
    with pytest.raises(ApiError, match=words):
        make_scale(client, "x", **spec)


@pytest.mark.usefixtures("nodes")
def test_a_demand_that_nobody_tells_any_more_is_not_known(client: Client, plane: ControlPlane):
    """Its readings are made old by taking the endpoint away."""
    with requests_served() as requests:
        make_scale(client, "llama", demand=requests.demand)
        make_server_pod(client, "p1", app="llama", node="g1")
        become(client, "p1", ready=True)
        with writing(plane):
            shows(client, "llama", recommendedReplicas=0)
            become(client, "p1", ready=True, address="127.0.0.2")  # where nobody listens

            def unknown() -> dict[str, Any] | None:
                found = status_of(client, "llama")
                return found if "recommendedReplicas" not in found else None

            status = wait_until(unknown, 60)
            assert status["conditions"][0]["reason"] == "DemandUnknown"
            assert "127.0.0.2" in status["conditions"][0]["message"]
