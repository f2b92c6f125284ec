"""What a real API server tells of its Services' networks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from modelcache.faces.watcher.services import ServiceNetworks
from tests.cluster.support import wait_until
from tests.faces.webhook.support import Remembered
from tests.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster


def test_the_cluster_tells_the_networks_of_its_services(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    told: list[list[str]] = []

    def learn(networks: Iterable[str]) -> None:
        told.append(list(networks))

    with plane.client() as client:
        asking = ServiceNetworks(client, learn)
        asking.start()
        try:
            wait_until(lambda: told[-1] == ["10.0.0.1", "10.0.0.0/24"])
        finally:
            asking.stop()
    assert told[0] == ["10.0.0.1"], "known at once"


def test_without_the_right_to_ask_it_is_said_once(plane: ControlPlane):
    log = Remembered()
    with plane.client("nobody") as client:
        asking = ServiceNetworks(client, lambda _: None, log=log)
        asking.start()
        wait_until(lambda: log.named("service_networks_unknown"))
        asking._thread.join(10)
    assert not asking._thread.is_alive()
