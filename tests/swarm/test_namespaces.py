"""Agents on hosts of their own, every link shaped: what crosses which link, also when one dies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import pytest

from modelcache.domain.ranges import MIB
from tests.agent.support import tree
from tests.servers.models import write_model
from tests.swarm.hosts import Agent, Origin
from tests.swarm.network import Network, needs_namespaces

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(180), needs_namespaces]

SIZE_BYTES = 256 * MIB
MBIT_S = 200.0
SETTINGS = f"[store]\nchunk_bytes = {2 * MIB}"
WAIT_S = 120.0


@dataclass
class Fleet:
    """Agents, none of which has anything."""

    network: Network
    origin: Origin
    agents: list[Agent]
    model: Path

    @property
    def ref(self) -> str:
        """The model."""
        return f"{self.origin.url}/model/"

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.model.iterdir())


@contextmanager
def fleet(folder: Path, count: int) -> Iterator[Fleet]:
    """An origin and so many agents, each behind a link of its own."""
    write_model(folder / "model", SIZE_BYTES)
    hosts = [f"node{number}" for number in range(count)]
    with (
        Network(["origin", *hosts], mbit_s=MBIT_S) as network,
        Origin(network, "origin", folder) as origin,
        ExitStack() as stack,
    ):
        agents = [
            stack.enter_context(Agent(network, host, hosts, settings=SETTINGS)) for host in hosts
        ]
        yield Fleet(network, origin, agents, folder / "model")


def ready(asked: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until all have it."""
    for each in asked:
        out, err = each.communicate(timeout=WAIT_S)
        assert each.returncode == 0, out + err


def test_eight_nodes_that_start_together_read_the_origin_once(tmp_path: Path) -> None:
    with fleet(tmp_path, 8) as hosts:
        ready([agent.prefetch(hosts.ref) for agent in hosts.agents])
        expected = tree(hosts.model)
        assert all(tree(agent.snapshot()) == expected for agent in hosts.agents)
        assert hosts.origin.sent_bytes <= 1.05 * hosts.size_bytes
        sent = [hosts.network.sent_bytes(agent.host) for agent in hosts.agents]
        assert max(sent) <= 1.3 * hosts.size_bytes, "nobody gives much more than it gets"


def test_nodes_that_come_later_leave_the_origin_alone(tmp_path: Path) -> None:
    with fleet(tmp_path, 5) as hosts:
        ready([hosts.agents[0].prefetch(hosts.ref)])
        before = hosts.origin.sent_bytes
        ready([agent.prefetch(hosts.ref) for agent in hosts.agents[1:]])
        weights = hosts.origin.sent_bytes - before
        assert weights < 10_000, "it is asked what there is, and for nothing of it"
        expected = tree(hosts.model)
        assert all(tree(agent.snapshot()) == expected for agent in hosts.agents)


def test_a_node_that_is_killed_half_way_is_missed_by_nobody(tmp_path: Path) -> None:
    with fleet(tmp_path, 4) as hosts:
        asked = [agent.prefetch(hosts.ref) for agent in hosts.agents]
        while hosts.origin.sent_bytes < hosts.size_bytes // 2:
            sleep(0.1)
        hosts.agents[3].kill()
        asked[3].kill()
        asked[3].communicate()
        ready(asked[:3])
        expected = tree(hosts.model)
        assert all(tree(agent.snapshot()) == expected for agent in hosts.agents[:3])
        assert hosts.origin.sent_bytes <= 1.5 * hosts.size_bytes, "at most its share again"
