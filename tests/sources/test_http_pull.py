"""Whole pulls over http: what the source says of a file is what the engine can read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.config import Settings, TransferSettings
from modelcache.domain.refs import parse_ref
from modelcache.errors import DigestMismatch, Forbidden, OriginChanged
from modelcache.sources.web import asking
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile, redirect

CONTENT = random.Random(2).randbytes((20 << 20) + 7)  # two chunks, the last one odd
SMALL = b"{}" * 100


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    settings = Settings(transfer=TransferSettings(retries_max=2))
    return Engine(settings.with_store(tmp_path / "store"))


def pull(engine: Engine, url: str) -> Path:
    return engine.pull(parse_ref(url)).path


def test_a_file_arrives_in_ranges(server, engine):
    server.answers["/w.bin"] = StaticFile(CONTENT, {"ETag": '"v1"'})
    assert (pull(engine, server.url("/w.bin")) / "w.bin").read_bytes() == CONTENT
    assert "range" in server.asked[-1].headers


def test_a_server_without_ranges_is_read_in_one_stream(server, engine):
    server.answers["/w.bin"] = StaticFile(CONTENT, {"ETag": '"v1"'}, ranges=False)
    assert (pull(engine, server.url("/w.bin")) / "w.bin").read_bytes() == CONTENT
    assert len([asked for asked in server.asked if asked.method == "GET"]) == 1


def test_a_server_without_validators_is_read_in_one_stream(server, engine):
    server.answers["/w.bin"] = StaticFile(CONTENT)
    assert (pull(engine, server.url("/w.bin")) / "w.bin").read_bytes() == CONTENT


def test_an_index_brings_a_tree(server, engine):
    files = [
        {"path": "a/config.json", "size": len(SMALL), "sha256": hashlib.sha256(SMALL).hexdigest()},
        {"path": "w.bin", "url": "/elsewhere/w?sig=1"},
        {"path": "empty", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    ]
    server.answers["/m/"] = lambda _: Reply(200, body=json.dumps({"files": files}).encode())
    server.answers["/m/a/config.json"] = StaticFile(SMALL)
    server.answers["/elsewhere/w"] = StaticFile(CONTENT, {"ETag": '"v1"'})
    path = pull(engine, server.url("/m/"))
    assert (path / "a/config.json").read_bytes() == SMALL
    assert (path / "w.bin").read_bytes() == CONTENT
    assert (path / "empty").read_bytes() == b""


def test_an_index_with_a_wrong_digest_is_not_believed(server, engine):
    files = [{"path": "x", "size": len(SMALL), "sha256": "ab" * 32}]
    server.answers["/m/"] = lambda _: Reply(200, body=json.dumps({"files": files}).encode())
    server.answers["/m/x"] = StaticFile(SMALL)
    with pytest.raises(DigestMismatch):
        pull(engine, server.url("/m/"))


def test_files_that_redirect_although_their_index_did_not_say(server, engine):
    date = "Mon, 02 Jan 2023 10:00:00 GMT"
    names = [f"f{i}" for i in range(20)]
    entries = [{"name": n, "type": "file", "size": len(SMALL), "mtime": date} for n in names]
    server.answers["/m/"] = lambda _: Reply(200, body=json.dumps(entries).encode())
    for name in names:
        server.answers[f"/m/{name}"] = redirect(f"/cdn/{name}")
        server.answers[f"/cdn/{name}"] = StaticFile(SMALL, {"Last-Modified": date})
    path = pull(engine, server.url("/m/"))
    assert all((path / name).read_bytes() == SMALL for name in names)


def test_a_redirect_that_expires_on_the_way_is_followed_again(server, engine):
    content = StaticFile(CONTENT, {"ETag": '"v1"'})
    issued = []

    def lead(_: Asked) -> Reply:
        issued.append(len(issued))
        return Reply(302, {"Location": f"/cdn?ticket={issued[-1]}"})

    def cdn(asked: Asked) -> Reply:
        fresh = asked.path == f"/cdn?ticket={issued[-1]}" and len(issued) > 1
        return content(asked) if fresh or asked.method == "HEAD" else Reply(403)

    server.answers["/w.bin"] = lead
    server.answers["/cdn"] = cdn
    assert (pull(engine, server.url("/w.bin")) / "w.bin").read_bytes() == CONTENT


def test_a_redirect_that_is_refused_for_good_ends_the_pull(server, engine):
    allowed = StaticFile(CONTENT, {"ETag": '"v1"'})
    refusing = []

    def cdn(asked: Asked) -> Reply:
        if asked.method == "GET":
            refusing.append(asked)
        return Reply(403) if refusing else allowed(asked)

    server.answers["/w.bin"] = redirect("/cdn?sig=hunter2")
    server.answers["/cdn"] = cdn
    with pytest.raises(Forbidden) as caught:
        pull(engine, server.url("/w.bin"))
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_under_way_is_an_error_never_a_mix(server, engine, honest):
    before = StaticFile(CONTENT, {"ETag": '"v1"'})
    after = StaticFile(CONTENT[::-1], {"ETag": '"v2"'})
    reads = []

    def answer(asked: Asked) -> Reply:
        if asked.method == "GET":
            reads.append(asked)
        if len(reads) < 2:
            return before(asked)
        if not honest:  # a server that ignores If-Match
            asked.headers.pop("if-match", None)
        return after(asked)

    server.answers["/w.bin"] = answer
    with pytest.raises(OriginChanged, match="pull again"):
        pull(engine, server.url("/w.bin"))
