"""Two agents as processes that know each other."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

import pytest

from modelcache.domain.refs import parse_ref
from tests.agent.support import tree
from tests.main.conftest import FILES
from tests.main.support import WAIT_S, Shell, wait_until
from tests.main.test_agent import agent
from tests.servers.faults import FaultProxy
from tests.servers.process import free_port

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_second_agent_has_the_model_from_the_first_and_each_knows_the_other(
    tmp_path: Path, origin: FaultProxy
):
    ports = [free_port(), free_port()]
    members = "\n".join(f"127.0.0.1:{port}" for port in ports)
    shells, folders = [], []
    for number, port in enumerate(ports):
        folder = tmp_path / f"node-{number}"
        folder.mkdir()
        folders.append(folder)
        shells.append(
            Shell(
                folder / "store",
                MODELCACHE_STORE_CHUNK_BYTES="2MiB",
                MODELCACHE_PEERS_LISTEN=f"127.0.0.1:{port}",
                MODELCACHE_PEERS_MEMBERS=members,
            )
        )
    ref = parse_ref(f"{origin.url}/")
    with (
        agent(shells[0], folders[0], "--node", "first") as first,
        agent(shells[1], folders[1], "--node", "second") as second,
    ):
        first.client.want(ref)
        assert first.client.wait(ref, WAIT_S).path
        before = origin.body_bytes
        second.client.want(ref)
        status = second.client.wait(ref, WAIT_S)
        assert tree(Path(status.path)) == FILES
        assert status.sources["peer:first"] > 10_000_000
        assert origin.body_bytes - before < 100_000  # the indexes, and what is too small to share
        assert [row["node"] for row in second.client.peers()] == ["first"]
        wait_until(lambda: [row["node"] for row in first.client.peers()] == ["second"])
        logged = json.loads(second.process.stderr.readline())
        metrics = urlopen(f"http://{logged['listen']}/metrics").read().decode()
        assert 'modelcache_peers{state="reachable"} 1.0' in metrics
        assert 'modelcache_received_bytes_total{host="",kind="peer"}' in metrics
        assert second.client.drain() is True
        assert second.client.node().reasons == ("draining",)
        assert second.client.resume() is True
        assert second.client.node().ready
