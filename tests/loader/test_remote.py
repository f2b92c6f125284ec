"""Tensors of a model that an agent of this node has, or is fetching."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelcache
from modelcache.agent.arriving import Arriving
from modelcache.config import Settings
from modelcache.errors import (
    AgentUnavailable,
    CorruptData,
    DigestMismatch,
    Forbidden,
    NotInStore,
    Throttled,
    UsageError,
)
from modelcache.loader import remote
from tests.agent.nodes import node_settings
from tests.agent.support import CHUNK_BYTES, settings
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.loader.models import Arrays, assert_same, write_shards
from tests.loader.test_arriving import LAST, SHARDS, Held, big, index_of
from tests.servers.faults import Fault, FaultProxy
from tests.servers.nginx import Nginx


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return node_settings(tmp_path / "store", node="node-1", socket=tmp_path / "run/agent.sock")


@pytest.fixture
def faces(chosen: Settings) -> Iterator[Running]:
    with running_faces(chosen) as running:
        yield running


@pytest.fixture
def site(web: tuple[Nginx, Path]) -> Iterator[tuple[FaultProxy, Path, Arrays]]:
    server, root = web
    wanted = write_shards(root, [big(n) for n in range(1, SHARDS + 1)])
    for path in root.iterdir():
        path.chmod(0o644)
    with FaultProxy(server.url) as proxy:
        yield proxy, root, wanted


def load(faces: Running, ref: str, **more: Any) -> dict[str, Any]:
    return modelcache.load(ref, through="agent", agent=str(faces.socket), **more)


def test_the_agent_brings_a_model_and_keeps_it(faces: Running, site: Any) -> None:
    proxy, _, wanted = site
    assert_same(load(faces, f"{proxy.url}/"), wanted)
    before = len(proxy.gets(".safetensors"))
    assert_same(load(faces, f"{proxy.url}/"), wanted)
    assert len(proxy.gets(".safetensors")) == before
    with faces.client() as client:
        (model,) = client.models()
        assert model["warm"]
        assert client.wanted() == [], "whoever loads wants it no longer than that"


def test_tensors_come_before_the_agent_has_the_rest(faces: Running, site: Any) -> None:
    proxy, _, wanted = site
    proxy.plan = held = Held()
    tensors = modelcache.iter_tensors(
        f"{proxy.url}/", through="agent", agent=str(faces.socket), order="file"
    )
    early = [next(tensors) for _ in range(len(wanted) - len(wanted) // SHARDS)]
    assert {name[:2] for name, _ in early} == {"s1", "s2"}
    held.go.set()
    assert_same(dict([*early, *tensors]), wanted)


def test_one_that_cannot_see_the_store_gets_bytes_of_a_warm_model(
    faces: Running, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, _, wanted = site
    load(faces, f"{proxy.url}/")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert_same(load(faces, f"{proxy.url}/"), wanted)
    part = load(faces, f"{proxy.url}/", rank=1, world_size=2, axes={"*": None}, names=["s1.t0"])
    np.testing.assert_array_equal(part["s1.t0"], wanted["s1.t0"])


def test_a_rank_gets_scattered_parts(
    faces: Running, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, root = web
    whole = np.random.default_rng(5).integers(0, 99, (64, 3000), np.uint8)
    write_shards(root, [{"w": whole}])
    for path in root.iterdir():
        path.chmod(0o644)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for rank in range(3):
        found = load(faces, f"{server.url}/", rank=rank, world_size=3, axes={"*": 1})
        np.testing.assert_array_equal(found["w"], np.split(whole, 3, 1)[rank])


def test_what_the_origin_refuses_is_raised(faces: Running, site: Any) -> None:
    proxy, _, _ = site
    proxy.plan = lambda request: Fault(status=403) if request.path.endswith(LAST) else None
    with pytest.raises(Forbidden):
        load(faces, f"{proxy.url}/")
    with faces.client() as client:
        assert client.wanted() == []


def test_bytes_that_were_wrong_are_never_called_right(
    faces: Running, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, root, wanted = site
    ref = index_of(root, proxy.url, "")
    held, flipped = Held(), threading.Event()

    def plan(request: Any) -> Fault | None:
        late = request.path.endswith(LAST) and request.span and request.span[0] >= CHUNK_BYTES
        if not held.go.is_set() or not late or flipped.is_set():
            return held(request)
        flipped.set()
        return Fault(flip_at=5)

    proxy.plan = plan
    monkeypatch.setattr(remote, "WAIT_S", 0.2)
    tensors = modelcache.iter_tensors(ref, through="agent", agent=str(faces.socket), order="file")
    for _ in range(len(wanted) - len(wanted) // SHARDS):
        next(tensors)  # the last file's header is read by now
    held.go.set()
    with pytest.raises(DigestMismatch, match="load it again"):
        list(tensors)


def test_the_api_gives_no_more_than_it_should(faces: Running, site: Any) -> None:
    proxy, root, _ = site
    load(faces, f"{proxy.url}/")
    data = (root / LAST).read_bytes()
    with faces.client() as client:
        model_id = client.find_model(f"{proxy.url}/")
        given, stamp = client.read_bytes(model_id, LAST, 3, 1000, wait_s=0)
        assert given == data[3:1000]
        assert client.read_bytes(model_id, LAST, 0, 0, wait_s=0) == (b"", stamp)
        for start, end in ((0, len(data) + 1), (0, (8 << 20) + 1)):
            with pytest.raises(UsageError, match="given at once"):
                client.read_bytes(model_id, LAST, start, end, wait_s=0)
        with pytest.raises(UsageError, match="ends before"):
            client.read_bytes(model_id, LAST, 5, 4, wait_s=0)
        with pytest.raises(NotInStore):
            client.read_bytes(model_id, "../../etc/passwd", 0, 1, wait_s=0)
        with pytest.raises(UsageError):
            client.read_bytes("../secret", LAST, 0, 1, wait_s=0)


def test_readers_beyond_the_limit_are_told_to_come_again(
    faces: Running, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, _, _ = site
    load(faces, f"{proxy.url}/")
    contents = faces.daemon.contents
    monkeypatch.setattr(contents, "_turns", threading.BoundedSemaphore(1))
    go, inside = threading.Event(), threading.Event()

    def held(*_: object, **__: object) -> None:
        inside.set()
        go.wait(WAIT_S)

    monkeypatch.setattr(Arriving, "wait", held)
    with faces.client() as client:
        model_id = client.find_model(f"{proxy.url}/")
        first = threading.Thread(
            target=client.read_bytes, args=(model_id, LAST, 0, 9), kwargs={"wait_s": 1}
        )
        first.start()
        assert inside.wait(WAIT_S)
        with pytest.raises(Throttled):
            client.read_bytes(model_id, LAST, 0, 9, wait_s=1)
        go.set()
        first.join(WAIT_S)


def test_bytes_over_tcp_need_a_token(tmp_path: Path) -> None:
    chosen = node_settings(
        tmp_path / "store", node="n", socket=tmp_path / "run/a.sock", listen="127.0.0.1:0"
    )
    with running_faces(chosen) as faces, faces.tcp() as api:
        body = {"path": "x", "start": 0, "end": 1}
        assert api.post("/v1/models/0123abcd/bytes", json=body).status_code == 403


# The transport leaves a socket behind where nobody listens.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_agent_that_is_not_there_is_told(tmp_path: Path) -> None:
    chosen = settings(tmp_path / "store")
    nowhere = str(tmp_path / "none.sock")
    with pytest.raises(AgentUnavailable):
        modelcache.load("https://h/x/", through="agent", agent=nowhere, settings=chosen)
    with pytest.raises(UsageError, match='through="agent"'):
        modelcache.load("https://h/x/", agent=nowhere, settings=chosen)
    with pytest.raises(UsageError, match="asked for a ref"):
        modelcache.load("0123abcd", through="agent", agent=nowhere, settings=chosen)


def test_answers_of_something_else_are_refused() -> None:
    with pytest.raises(CorruptData):
        remote._sizes({"contents": [{"path": "x"}]})
    assert remote._sizes({"contents": [{"path": "x", "size_bytes": 3}]}) == {"x": 3}
