"""The client against a real agent: what it asks, and which errors come back."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.agent.events import EventKind
from modelcache.client import AgentClient, error_of, find_agent
from modelcache.config import Settings
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import ModelPhase, Trouble
from modelcache.errors import (
    AgentUnavailable,
    CorruptData,
    Draining,
    Forbidden,
    InvalidRef,
    ModelcacheError,
    NotInStore,
    StoreFull,
    Throttled,
    UsageError,
)
from tests.agent.nodes import Models, node_settings, ref_to
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.servers.faults import held_from
from tests.servers.nginx import Nginx

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return node_settings(
        tmp_path / "store", node="node-1", socket=tmp_path / "agent.sock", listen="127.0.0.1:0"
    )


@pytest.fixture
def faces(chosen: Settings) -> Iterator[Running]:
    with running_faces(chosen) as running:
        yield running


@pytest.fixture
def client(faces: Running) -> Iterator[AgentClient]:
    with faces.client() as client:
        yield client


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    made = Models(web[0].url, web[1])
    yield made
    made.close()


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that gives one raw answer to each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(WAIT_S)


def http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def test_a_model_is_wanted_waited_for_and_released(client: AgentClient, models: Models):
    ref = ref_to(models.add("m"), "m").filtered(["*.safetensors"])
    begun = client.want(ref, priority=60, lease="a", note="why", ttl_s=60)
    assert (begun.priority, begun.wants[0].note) == (60, "why")
    warm = client.wait(ref, WAIT_S)
    assert (warm.phase, warm.path != "") == (ModelPhase.WARM, True)
    assert client.status(ref) == warm
    assert client.wanted() == [warm]
    assert client.models()[0]["model_id"] == warm.model_id
    node = client.node()
    assert (node.node, node.ready, node.draining, node.wanted) == ("node-1", True, False, (warm,))
    assert client.peers() == []
    assert client.release(ref, "b") is False
    assert client.release(ref, "a") is True
    with pytest.raises(NotInStore, match="not wanted"):
        client.status(ref)


def test_waiting_ends_with_the_time(client: AgentClient, models: Models):
    ref = ref_to(models.add("m", plan=held_from(0)), "m")
    client.want(ref)
    assert not client.wait(ref, 0.1).phase.settled


def test_errors_come_back_as_their_own_classes(client: AgentClient):
    with pytest.raises(UsageError, match="priority"):
        client.want(parse_ref("s3://bucket/m"), priority=1000)
    assert client.drain(5.0) is True
    with pytest.raises(Draining, match="node-1 is draining"):
        client.want(parse_ref("s3://bucket/m"))
    assert [client.resume(), client.resume()] == [True, False]
    assert client.node().ready


def test_events_are_told_and_gone_on_with(faces: Running, client: AgentClient):
    log = faces.daemon.node.events
    for name in "abc":
        log.add(EventKind.EVICTED, model_id=name)
    events = client.events(history=True)
    first = next(events)
    events.close()
    assert (first.kind, first.data["model_id"]) == ("evicted", "a")
    rest = client.events(after=first.event_id)
    assert [next(rest).data["model_id"] for _ in range(2)] == ["b", "c"]
    rest.close()


def test_over_tcp_changes_need_the_token(chosen: Settings, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    guarded = replace(chosen, agent=replace(chosen.agent, tcp_token_file=str(token)))
    ref = parse_ref("file:///nonexistent")
    with running_faces(guarded) as faces:
        with AgentClient(faces.url) as client:
            assert client.wanted() == []
            with pytest.raises(Forbidden, match="need the agent's token"):
                client.want(ref)
        given = {"MODELCACHE_AGENT": faces.url, "MODELCACHE_AGENT_TOKEN_FILE": str(token)}
        with find_agent(environment=given) as client:
            client.want(ref)


def test_an_agent_is_found_by_argument_environment_and_its_usual_socket(
    faces: Running, tmp_path: Path
):
    socket_path = str(faces.socket)
    nowhere = {"XDG_RUNTIME_DIR": str(tmp_path / "none")}
    for found in (
        find_agent(socket_path, environment={"MODELCACHE_AGENT": "/other"}),
        find_agent(f"unix:{socket_path}", environment={}),
        find_agent(environment={"MODELCACHE_AGENT": socket_path}),
        find_agent(socket=faces.socket, environment=nowhere),
    ):
        with found as client:
            assert client.node().node == "node-1"
    with pytest.raises(AgentUnavailable, match="start one with `modelcache agent`"):
        find_agent(socket=tmp_path / "none.sock", environment=nowhere)


@pytest.mark.parametrize("address", ["ftp://host", "http://", "https://:5", "http://[::1"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(UsageError, match="no agent's address"):
        AgentClient(address)


def test_token_files_that_hold_none_are_named(tmp_path: Path):
    path = tmp_path / "token"
    named = {"MODELCACHE_AGENT": "/x", "MODELCACHE_AGENT_TOKEN_FILE": str(path)}
    with pytest.raises(UsageError, match="cannot read"):
        find_agent(environment=named)
    path.write_text("two words")
    with pytest.raises(UsageError, match="one word"):
        find_agent(environment=named)


# httpx2 leaves the socket of a failed connect to the garbage collector, if it is a Unix socket.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_there_is_agent_unavailable(tmp_path: Path):
    with AgentClient(str(tmp_path / "none")) as client:
        with pytest.raises(AgentUnavailable, match="no agent answers"):
            client.node()
        with pytest.raises(AgentUnavailable):
            next(client.events())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http(b"<html>"), CorruptData),
        (http(b"[]"), CorruptData),
        (http(b"{}"), CorruptData),
        (http(b"[" * 100_000), CorruptData),
        (http(b"<html>", "502 Bad Gateway"), CorruptData),
        (http(b"{}", "404 Not Found"), CorruptData),
        (http(b"Service Unavailable", "503 Service Unavailable"), AgentUnavailable),
        (http(b'{"error": {"code": "newer", "message": "a\\u001bb"}}', "409 C"), UsageError),
        (http(b'{"error": {"code": "store_full", "message": "x"}}', "507 Full"), StoreFull),
        (http(b'{"error": {"code": "throttled", "message": "x"}}', "429 Many"), Throttled),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", AgentUnavailable),
        (b"nonsense\r\n\r\n", AgentUnavailable),
        (b"", AgentUnavailable),
    ],
    ids=range(13),
)
def test_whatever_answers_is_an_error_of_ours(answer: bytes, error: type[ModelcacheError]):
    with answering(answer) as url, AgentClient(url) as client:
        with pytest.raises(error) as caught:
            client.node()
        assert caught.value.message.isprintable()


def test_a_status_that_is_none_is_corrupt():
    strange = http(json.dumps([{"phase": "warm"}]).encode())
    with (
        answering(strange) as url,
        AgentClient(url) as client,
        pytest.raises(CorruptData, match="another version"),
    ):
        client.wanted()


def test_a_trouble_becomes_the_error_it_was():
    assert type(error_of(Trouble("invalid_ref", "x"))) is InvalidRef
    assert type(error_of(Trouble("bug", "x"))) is ModelcacheError
