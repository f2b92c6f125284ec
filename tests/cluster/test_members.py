"""Peers from EndpointSlices of a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.discovery_v1 import EndpointSlice

from modelcache.agent import Engine
from modelcache.agent.swarm import Swarm
from modelcache.domain.members import Member
from modelcache.faces.watcher.members import EndpointMembers
from tests.agent.nodes import node_settings
from tests.cluster.support import wait_until
from tests.servers.control_plane import ControlPlane

pytestmark = pytest.mark.cluster
SERVICE = "modelcache-peers"


@pytest.fixture
def members(plane: ControlPlane) -> Iterator[EndpointMembers]:
    with plane.client() as client:
        made = EndpointMembers(client, f"default/{SERVICE}", 9871)
        made.start()
        yield made
        made.stop()


@pytest.fixture(autouse=True)
def clean(client: Client) -> Iterator[None]:
    yield
    for found in client.list(EndpointSlice, namespace="default", labels=LABELS):
        client.delete(EndpointSlice, str(found.metadata.name), namespace="default")


LABELS = {"kubernetes.io/service-name": SERVICE}


def make_slice(client: Client, name: str, endpoints: list[Endpoint], **more: Any) -> None:
    client.create(
        EndpointSlice(
            addressType="IPv4",
            endpoints=endpoints,
            metadata=ObjectMeta(name=name, namespace="default", labels=LABELS),
            **more,
        )
    )


def endpoint(address: str, zone: str | None = None, **conditions: bool) -> Endpoint:
    return Endpoint(addresses=[address], zone=zone, conditions=EndpointConditions(**conditions))


def test_members_come_and_go_with_their_zones(client: Client, members: EndpointMembers):
    assert members.members() == ()
    ports = [EndpointPort(name="peers", port=9999), EndpointPort(name="api", port=1)]
    make_slice(
        client,
        "one",
        [
            endpoint("10.0.0.1", "a", ready=True),
            endpoint("10.0.0.2", "b", ready=False, serving=True, terminating=True),
            endpoint("10.0.0.3", "b", ready=False),
        ],
        ports=ports,
    )
    make_slice(client, "two", [endpoint("10.0.0.4")])
    expected = (
        Member("10.0.0.1", 9999, "a"),
        Member("10.0.0.2", 9999, "b"),
        Member("10.0.0.4", 9871),
    )
    wait_until(lambda: members.members() == expected)
    client.delete(EndpointSlice, "one", namespace="default")
    wait_until(lambda: members.members() == expected[2:])


def test_a_node_learns_its_own_zone_from_its_cluster(
    client: Client, members: EndpointMembers, tmp_path: Path
):
    make_slice(
        client,
        "one",
        [endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), endpoint("10.0.0.3", "a")],
    )
    wait_until(lambda: len(members.members()) == 3)
    base = node_settings(tmp_path / "store")
    token = tmp_path / "token"
    token.write_text("x" * 40)
    peers = replace(base.peers, advertise="10.0.0.1:9871", token_file=str(token))
    settings = replace(base, peers=peers)
    with Engine(settings) as engine:
        swarm = Swarm(settings, engine, members)
        assert swarm.members() == (Member("10.0.0.3", 9871, "a"),)
