"""Models in memory, over the API and by its client."""

from __future__ import annotations

import threading

import pytest

from modelcache.agent.memory import MemoryTier
from modelcache.client import AgentClient
from modelcache.domain.refs import parse_ref
from modelcache.errors import NotInStore, UsageError
from tests.agent.nodes import Models
from tests.agent.support import CHUNK_BYTES
from tests.faces.http.agents import WAIT_S, Running


@pytest.fixture
def warm(faces: Running, models: Models) -> str:
    """The ref of a model that the agent has."""
    ref = f"{models.add('m').url}/m/"
    with faces.client() as client:
        client.want(parse_ref(ref))
        assert client.wait(parse_ref(ref), WAIT_S).path
    return ref


def settled(faces: Running, client: AgentClient, model_id: str) -> dict:
    for thread in faces.daemon.memorizing._threads:
        thread.join(WAIT_S)
    return client.memory(model_id)


def test_a_model_is_brought_into_memory_and_dropped(faces: Running, warm: str):
    with faces.client() as client:
        model_id = client.find_model(warm)
        assert client.find_model(model_id[:8]) == model_id
        assert client.memory(model_id)["phase"] == "idle"
        begun = client.warm_memory(model_id)
        assert begun["model_id"] == model_id
        done = settled(faces, client, model_id)
        assert (done["phase"], done["trouble"]) == ("done", None)
        assert done["done_bytes"] == done["total_bytes"] == 5 * CHUNK_BYTES
        assert done["resident_bytes"] == 5 * CHUNK_BYTES
        (listed,) = client.models()
        assert listed["memory"]["resident_bytes"] == 5 * CHUNK_BYTES
        assert client.drop_memory(model_id) >= 0
        assert client.memory(model_id)["phase"] == "idle"


def test_what_fails_says_why(faces: Running, warm: str):
    with faces.client() as client:
        model_id = client.find_model(warm)
        client.warm_memory(model_id, locked=True)
        failed = settled(faces, client, model_id)
        assert failed["phase"] == "failed"
        assert failed["trouble"]["code"] == "invalid_config"
        assert "memory.folder" in failed["trouble"]["message"]


def test_asking_twice_begins_once(faces: Running, warm: str, monkeypatch: pytest.MonkeyPatch):
    go, begun = threading.Event(), []

    def held(_: MemoryTier, model_id: str, **__: object) -> None:
        begun.append(model_id)
        go.wait(WAIT_S)

    monkeypatch.setattr(MemoryTier, "warm", held)
    with faces.client() as client:
        model_id = client.find_model(warm)
        for _ in range(3):
            assert client.warm_memory(model_id)["phase"] == "warming"
        go.set()
        assert settled(faces, client, model_id)["phase"] == "done"
    assert begun == [model_id]


def test_models_that_are_not_there_are_not_found(faces: Running, warm: str):
    with faces.client() as client:
        for what in ("0123abcd", "https://host/other/"):
            with pytest.raises(NotInStore):
                client.find_model(what)
        with pytest.raises(NotInStore):
            client.warm_memory("0123abcd")
        with pytest.raises(UsageError):
            client.find_model("../../etc")
        assert client.find_model(warm)


def test_changes_over_tcp_need_a_token(faces: Running, warm: str):
    with faces.client() as client:
        model_id = client.find_model(warm)
    with faces.tcp() as api:
        assert api.get(f"/v1/models/{model_id}/memory").status_code == 200
        assert api.post(f"/v1/models/{model_id}/memory", json={}).status_code == 403
        assert api.delete(f"/v1/models/{model_id}/memory").status_code == 403
