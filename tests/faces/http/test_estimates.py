"""When a model would be ready, as an agent answers it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modelcache.client import AgentClient
from modelcache.config import ForecastSettings, Settings
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.volumes import MountMode
from modelcache.errors import NotFound, NotInStore
from tests.agent.nodes import MIB, Models
from tests.agent.support import CHUNK_BYTES
from tests.cluster.support import wait_until
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.servers.faults import held_from
from tests.servers.process import free_port

SIZE = 5 * CHUNK_BYTES


@pytest.fixture
def chosen(chosen: Settings) -> Settings:
    return replace(
        chosen, forecast=ForecastSettings(origin_bytes_s=10 * MIB, load_bytes_s=20 * MIB)
    )


@pytest.fixture
def client(faces: Running) -> Iterator[AgentClient]:
    with faces.client() as made:
        yield made


def error(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def resolved(client: AgentClient, ref: Ref) -> dict[str, Any] | None:
    """What is told of a model, once the agent has learnt what it consists of."""
    try:
        return client.estimate(ref)
    except NotInStore:
        return None


def test_this_node_the_best_and_a_new_one_are_told(client: AgentClient, models: Models):
    ref = parse_ref(f"{models.add('m', plan=held_from(MIB)).url}/m/")
    client.want(ref)
    wait_until(lambda: client.status(ref).done_bytes > 0)
    told = wait_until(lambda: resolved(client, ref))
    assert told["size_bytes"] == SIZE
    this, best, new = told["estimates"]
    assert [each["which"] for each in (this, best, new)] == ["this", "best", "new"]
    assert (this["node"], best["node"], new["node"]) == ("node-1", "node-1", "new")
    assert 0 < this["missing_bytes"] < new["missing_bytes"] == SIZE
    assert (this["tier"], new["tier"]) == ("warming", "cold")
    assert new["basis"] == "declared"
    assert not new["confident"]
    assert new["parts"]["fetch_s"] == pytest.approx(SIZE / (10 * MIB), abs=0.01)
    assert new["parts"]["load_s"] == pytest.approx(SIZE / (20 * MIB), abs=0.01)
    assert new["p50_s"] < new["p90_s"]
    assert new["loaded_p50_s"] > new["p50_s"]
    assert [each["which"] for each in client.estimate(ref, node="new")["estimates"]] == ["new"]
    (streamed,) = client.estimate(ref, node="new", mode=MountMode.STREAM)["estimates"]
    assert streamed["p50_s"] < 1 < new["p50_s"]  # mounted as soon as it is known what it is
    assert streamed["loaded_p50_s"] < new["loaded_p50_s"]  # and loaded while it comes
    named = client.estimate(ref, node="node-1", priority=10)["estimates"]
    assert [(each["which"], each["node"]) for each in named] == [("named", "node-1")]


def test_a_cold_system_says_unknown(chosen: Settings, models: Models):
    ref = parse_ref(f"{models.add('m', plan=held_from(0)).url}/m/")
    undeclared = replace(chosen, forecast=ForecastSettings())
    with running_faces(undeclared) as running, running.client() as client:
        client.want(ref)
        told = wait_until(lambda: resolved(client, ref))
        new = told["estimates"][2]
        assert (new["basis"], new["p50_s"], new["parts"]) == ("unknown", None, None)
        assert told["score"]["p90_coverage"] is None


def test_what_cannot_be_answered_is_refused_in_one_line(
    faces: Running, client: AgentClient, models: Models
):
    ref = parse_ref(f"{models.add('m').url}/m/")
    with pytest.raises(NotInStore, match="never resolved on this node"):
        client.estimate(ref)
    client.want(ref)
    assert client.wait(ref, WAIT_S).path
    with pytest.raises(NotFound, match="no node 'gpu-99' answers"):
        client.estimate(ref, node="gpu-99")
    with faces.tcp() as api:
        nowhere = api.get("/v1/estimate", params={"ref": "s3://nowhere/x"})
        assert error(nowhere) == (404, "not_in_store")
        asked = {"ref": str(ref), "node": "gpu-99"}
        assert error(api.get("/v1/estimate", params=asked)) == (404, "not_found")
        for bad in (
            *({"ref": "ftp://x"}, {}, {"ref": ""}, {"ref": str(ref), "priority": 101}),
            {"ref": str(ref), "mode": "torrent"},
        ):
            status, code = error(api.get("/v1/estimate", params=bad))
            assert (status, code) in {(400, "usage"), (400, "invalid_ref")}


def test_a_node_that_holds_the_model_is_the_best(tmp_path: Path, chosen: Settings, models: Models):
    ports = [free_port(), free_port()]
    members = tuple(f"127.0.0.1:{port}" for port in ports)
    holder, asked = (
        replace(
            chosen,
            agent=replace(chosen.agent, node=name, socket=tmp_path / f"{name}.sock"),
            store=replace(chosen.store, path=tmp_path / name),
            peers=replace(chosen.peers, listen=f"127.0.0.1:{port}", members=members),
        )
        for name, port in zip(("holder", "asked"), ports, strict=True)
    )
    ref = parse_ref(f"{models.add('m').url}/m/")
    with (
        running_faces(holder) as first,
        running_faces(asked) as second,
        first.client() as one,
        second.client() as two,
    ):
        one.want(ref)
        assert one.wait(ref, WAIT_S).path
        two.want(ref)
        assert two.wait(ref, WAIT_S).path
        two.release(ref)
        second.daemon.engine.remove(two.models()[0]["model_id"], force=True)
        # Alone it would have to fetch all of it again; the other node needs nothing.
        this, best, new = two.estimate(ref)["estimates"]
        assert (this["tier"], this["holders"]) == ("cold", 1)
        assert (best["node"], best["tier"], best["missing_bytes"]) == ("holder", "warm", 0)
        assert best["p90_s"] < this["p90_s"]
        assert new["holders"] == 1
        named = two.estimate(ref, node="holder")["estimates"]
        assert named[0]["tier"] == "warm"
