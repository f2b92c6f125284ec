"""Who may do what over which face, over real sockets."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.config import Settings
from modelcache.errors import InvalidConfig
from modelcache.faces.http.guard import BODY_BYTES_MAX
from modelcache.faces.http.guard import token_file as token_in
from tests.faces.http.agents import Running, running_faces

TOKEN = "0123456789abcdef" * 2
WANT = {"ref": "file:///nonexistent/m"}
CHANGES = [
    ("POST", "/v1/models/wanted"),
    ("DELETE", "/v1/models/wanted/0123456789abcdef"),
    ("POST", "/v1/drain"),
    ("POST", "/v1/resume"),
    ("PUT", "/v1/models"),
    ("PATCH", "/v1/status"),
]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
def guarded(chosen: Settings, token_file: Path):
    agent = replace(chosen.agent, tcp_token_file=str(token_file))
    with running_faces(replace(chosen, agent=agent)) as running:
        yield running


@pytest.mark.parametrize(("method", "path"), CHANGES, ids=str)
def test_without_a_token_file_nothing_is_changed_over_tcp(faces: Running, method: str, path: str):
    with faces.tcp(TOKEN) as api:
        answer = api.request(method, path, json=WANT)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "read_only_face"
        assert "agent.tcp_token_file" in answer.json()["error"]["message"]
    assert not faces.daemon.node.draining


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/v1/status", "/v1/models", "/v1/peers", "/docs"]
)
def test_reading_is_open_over_tcp_with_a_token_and_without(guarded: Running, path: str):
    with guarded.tcp() as api:
        assert api.get(path).status_code == 200


def test_with_a_token_changes_are_taken_over_tcp(guarded: Running):
    with guarded.tcp(TOKEN) as api:
        assert api.post("/v1/models/wanted", json=WANT).status_code == 202
    with guarded.tcp() as api:
        assert len(api.get("/v1/models/wanted").json()) == 1


@pytest.mark.parametrize("given", [None, "", "x", TOKEN[:-1], f"{TOKEN}0", TOKEN.upper()], ids=str)
def test_a_wrong_token_changes_nothing(guarded: Running, given: str | None):
    with guarded.tcp(given) as api:
        answer = api.post("/v1/models/wanted", json=WANT)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text
        assert api.get("/v1/models/wanted").json() == []


@pytest.mark.parametrize("header", [f"Basic {TOKEN}", TOKEN, f"Bearer{TOKEN}"])
def test_only_a_bearer_is_a_bearer(guarded: Running, header: str):
    with guarded.tcp() as api:
        answer = api.post("/v1/drain", headers={"Authorization": header})
        assert answer.status_code == 401
        scheme = api.post(
            "/v1/models/wanted", json=WANT, headers={"Authorization": f"bearer  {TOKEN}"}
        )
        assert scheme.status_code == 202


def test_the_unix_socket_needs_no_token(guarded: Running):
    with guarded.unix() as api:
        assert api.post("/v1/models/wanted", json=WANT).status_code == 202


def test_a_replaced_token_counts_from_then_on(guarded: Running, token_file: Path):
    newer = token_file.with_suffix(".new")
    newer.write_text("f" * 40)
    newer.rename(token_file)
    with guarded.tcp(TOKEN) as api:
        assert api.post("/v1/models/wanted", json=WANT).status_code == 401
    with guarded.tcp("f" * 40) as api:
        assert api.post("/v1/models/wanted", json=WANT).status_code == 202
        token_file.unlink()  # between two links of who replaces it
        assert api.post("/v1/models/wanted", json=WANT).status_code == 202
    with guarded.tcp("") as api:
        assert api.post("/v1/models/wanted", json=WANT).status_code == 401


@pytest.mark.parametrize("content", ["", "short", "two words of which none is short", "x" * 5000])
def test_a_file_without_a_good_token_is_named_and_not_quoted(tmp_path: Path, content: str):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match="openssl rand") as caught:
        token_in(path)
    assert str(path) in caught.value.message
    assert not content or content not in caught.value.message


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InvalidConfig, match="token cannot be read: No such file"):
        token_in(tmp_path / "token")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(faces: Running):
    with faces.unix() as api:
        answer = api.post("/v1/models/wanted", content=b"x" * (BODY_BYTES_MAX + 1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_does_not_say_its_size_is_bounded_too(faces: Running):
    def pieces():
        for _ in range(BODY_BYTES_MAX // 1000 + 10):
            yield b"x" * 1000

    with faces.unix() as api:
        answer = api.post("/v1/models/wanted", content=pieces())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert api.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/models/wanted HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models/wanted HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=range(7),
)
def test_nonsense_ends_its_own_connection_only(faces: Running, data: bytes):
    host, port = "127.0.0.1", int(faces.url.rpartition(":")[2])
    with socket.create_connection((host, port), timeout=10) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    with faces.tcp() as api:
        assert api.get("/healthz").status_code == 200


def test_the_sockets_file_is_for_its_owner_and_group(faces: Running):
    assert faces.socket.stat().st_mode & 0o777 == 0o660
    assert faces.socket.parent.stat().st_mode & 0o007 == 0
