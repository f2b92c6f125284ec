"""Questions to peers, over real connections: plain, signed, with TLS, and to what is no peer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from modelcache.config import PeerSettings
from modelcache.domain.members import Member, NodeId
from modelcache.errors import (
    CorruptData,
    Forbidden,
    NotHeld,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.peers import serving as serving_module
from modelcache.peers.auth import PeerAuth
from modelcache.peers.client import PeerClient
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.server import PeerServer
from modelcache.peers.signing import Scope, sign
from tests.peers.support import ME, OTHER, TOKEN, FolderShelf, ask, blob_id, serving, until
from tests.servers.certificates import Authority, Certificates
from tests.transfer.wire import WireServer, answers

SAID = Announcement(OTHER, Member("127.0.0.1", 9871))
ASKED = ResolveRequest("hf://org/name", 0.0)
TIMEOUT_S = 10.0


def at(port: int) -> Member:
    return Member("127.0.0.1", port)


@contextmanager
def client(**settings: Any) -> Iterator[PeerClient]:
    found = PeerClient(PeerAuth.of(PeerSettings(listen="127.0.0.1:0", **settings)), OTHER)
    try:
        yield found
    finally:
        found.close()


def tls(certificates: Certificates, **more: Any) -> dict[str, Any]:
    return {
        "cert_file": str(certificates.cert_file),
        "key_file": str(certificates.key_file),
        "ca_file": str(certificates.ca_file),
        "server_name": "modelcache-peer",
        **more,
    }


def works(server: PeerServer, asking: PeerClient) -> None:
    answer = asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
    assert answer.node == ME
    assert asking.resolve(at(server.port), ASKED, timeout_s=TIMEOUT_S) == b"hf://org/name"


# Plain


def test_questions_are_answered_over_one_connection(shelf: FolderShelf):
    with serving(shelf) as server, client() as asking:
        for _ in range(5):
            works(server, asking)
        assert server.counters().connections == 1
        assert shelf.heard == [SAID] * 5
        assert shelf.resolved == [ASKED] * 5
        until(lambda: server.counters().peers[0].requests == 10)


def test_questions_at_the_same_time_have_connections_of_their_own(shelf: FolderShelf):
    with serving(shelf) as server, client() as asking:
        threads = [threading.Thread(target=works, args=(server, asking)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(shelf.heard) == 16
        works(server, asking)


def test_a_connection_that_was_closed_while_idle_is_opened_anew(
    shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving_module, "IDLE_S", 0.05)
    with serving(shelf) as server, client() as asking:
        works(server, asking)
        until(lambda: server.counters().connections == 0)
        works(server, asking)


def test_what_the_shelf_refuses_is_raised_here(shelf: FolderShelf):
    def refuse(_: ResolveRequest) -> bytes:
        raise error

    shelf.answer = refuse
    with serving(shelf) as server, client() as asking:
        for error, kind in (
            (NotHeld("not here"), NotHeld),
            (Forbidden("no entry"), Forbidden),
            (SourceRefused("not for you"), SourceRefused),
            (SourceUnavailable("the hub is down"), SourceUnavailable),
            (Throttled("slower", retry_after_s=2.5), Throttled),
        ):
            with pytest.raises(kind, match=error.message) as caught:
                asking.resolve(at(server.port), ASKED, timeout_s=TIMEOUT_S)
            assert type(caught.value) is kind
            assert str(server.port) in caught.value.message
        assert caught.value.retry_after_s == 3.0
        shelf.answer = lambda asked: asked.ref.encode()
        works(server, asking)


def test_large_answers_come_whole(shelf: FolderShelf):
    body = bytes(range(256)) * 40_000
    shelf.answer = lambda _: body
    with serving(shelf) as server, client() as asking:
        assert asking.resolve(at(server.port), ASKED, timeout_s=TIMEOUT_S) == body


# Peers that are none


def test_where_nobody_listens_the_peer_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with client() as asking, pytest.raises(SourceUnavailable, match="refused"):
        asking.announce(at(port), SAID, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 999999\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=range(8),
)
def test_what_answers_oddly_is_corrupt(answer: bytes):
    with WireServer(answers([answer])) as server, client() as asking, pytest.raises(CorruptData):
        asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("404 Not Found", b'{"error":{"code":"not_held","message":"a\x1b[31mb"}}', NotHeld),
        ("403 Forbidden", b"", Forbidden),
        ("503 Service Unavailable", b"[", Throttled),
        ("418 Teapot", b"{}", SourceRefused),
        ("500 Error", b'{"error":5}', SourceUnavailable),
        ("302 Found", b"", SourceUnavailable),
    ],
)
def test_refusals_of_anybody_are_understood_and_shown_harmlessly(
    status: str, body: bytes, kind: type[Exception]
):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        WireServer(answers([head + body])) as server,
        client() as asking,
        pytest.raises(kind) as caught,
    ):
        asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
    assert str(caught.value).isprintable()


def trickles(connected: socket.socket) -> None:
    connected.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000:
        connected.sendall(bytes([byte]))
        sleep(0.02)


def is_silent(connected: socket.socket) -> None:
    while connected.recv(65536):
        pass


@pytest.mark.parametrize("talk", [trickles, is_silent])
def test_a_question_has_one_time_limit_for_all_of_it(talk):
    with WireServer(talk) as server, client() as asking:
        started_s = monotonic()
        with pytest.raises(SourceUnavailable, match="no answer in time"):
            asking.announce(at(server.port), SAID, timeout_s=0.4)
        assert 0.3 < monotonic() - started_s < 3


def test_after_closing_nothing_is_kept(shelf: FolderShelf):
    with serving(shelf) as server, client() as asking:
        works(server, asking)
        asking.close()
        works(server, asking)
        until(lambda: server.counters().connections == 0)


# Tokens


def test_with_the_same_token_nodes_understand_each_other(shelf: FolderShelf, token_file: Path):
    secured = {"token_file": str(token_file)}
    with serving(shelf, **secured) as server, client(**secured) as asking:
        works(server, asking)


def test_a_node_is_asked_by_the_name_that_it_has_said(shelf: FolderShelf, token_file: Path):
    secured = {"token_file": str(token_file)}
    with client(**secured) as asking:
        with serving(shelf, **secured) as server:
            port = server.port
            for _ in range(3):
                works(server, asking)
            until(lambda: server.counters().peers[0].requests == 7)  # one was to hear the name
            assert server.counters().connections == 1
        other = NodeId("node-c")
        shelf.said = Announcement(other, at(port))
        with serving(shelf, me=other, port=port, **secured):
            assert asking.announce(at(port), SAID, timeout_s=TIMEOUT_S).node == other
    assert len(shelf.heard) == 4


def test_what_never_says_the_same_name_is_given_up(token_file: Path, shelf: FolderShelf):
    secured = {"token_file": str(token_file)}
    with serving(shelf, **secured) as server, client(**secured) as asking:

        class Forgetful(dict[tuple[str, int], NodeId]):
            def __setitem__(self, key: tuple[str, int], node: NodeId) -> None:
                """Learn nothing."""

        asking._names = Forgetful()
        with pytest.raises(SourceUnavailable, match="one name and then another"):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
    assert not shelf.heard


def test_a_name_is_believed_of_who_has_the_token_only(token_file: Path):
    error = b'{"error": {"code": "misdirected", "message": "x", "node": "node-a"}}'
    head = b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: %d\r\n\r\n" % len(error)
    with (
        WireServer(answers([head + error])) as impostor,
        client(token_file=str(token_file)) as asking,
        pytest.raises(Forbidden, match="does not have the cluster's token"),
    ):
        asking.announce(at(impostor.port), SAID, timeout_s=TIMEOUT_S)


def test_without_the_token_nothing_is_answered(
    shelf: FolderShelf, token_file: Path, tmp_path: Path
):
    other = tmp_path / "other"
    other.write_text("another token of some length")
    with serving(shelf, token_file=str(token_file)) as server:
        for settings, said in (({}, "not signed"), ({"token_file": str(other)}, "another token")):
            with client(**settings) as asking, pytest.raises(Forbidden, match=said):
                asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
        assert server.counters().troubles == {"no_credentials": 1, "forbidden": 1}
        assert not server.counters().peers
    assert not shelf.heard


@pytest.mark.parametrize(("age_s", "said"), [(3600, "ago"), (-3600, "in the future")])
def test_a_node_with_a_wrong_clock_hears_of_it(
    shelf: FolderShelf, token_file: Path, age_s: float, said: str
):
    path = f"/v1/blobs/{blob_id()}"
    now_s = datetime.now(UTC).timestamp()
    signature = sign(Scope("GET", path, OTHER, ME), [TOKEN.encode()], now_s - age_s)
    with serving(shelf, token_file=str(token_file)) as server:
        status, _, body = ask(server, path, X_Modelcache_To=ME, X_Modelcache_Signature=signature)
    assert status == 403
    assert said.encode() in body
    assert b"NTP" in body
    assert TOKEN.encode() not in body


def test_what_cannot_sign_its_answer_is_no_peer(shelf: FolderShelf, token_file: Path):
    with (
        serving(shelf) as impostor,
        client(token_file=str(token_file)) as asking,
        pytest.raises(Forbidden, match="does not have the cluster's token"),
    ):
        asking.announce(at(impostor.port), SAID, timeout_s=TIMEOUT_S)


# TLS


@pytest.mark.parametrize("names", [(), ("modelcache-peer",)])
def test_with_certificates_of_one_authority_nodes_understand_each_other(
    shelf: FolderShelf, authority: Authority, token_file: Path, names: tuple[str, ...]
):
    mine, others = authority.issue_peer("a"), authority.issue_peer("b")
    more = {"token_file": str(token_file), "allowed_names": names}
    with serving(shelf, **tls(mine, **more)) as server, client(**tls(others, **more)) as asking:
        for _ in range(3):
            works(server, asking)


def test_without_server_name_the_address_must_be_in_the_certificate(
    shelf: FolderShelf, authority: Authority
):
    usage = "serverAuth,clientAuth"
    named = authority.issue("named", "node", ("IP:127.0.0.1",), usage=usage)
    unnamed = authority.issue_peer("a")
    with client(**tls(unnamed, server_name="")) as asking:
        with serving(shelf, **tls(named)) as server:
            works(server, asking)
        with (
            serving(shelf, **tls(unnamed)) as server,
            pytest.raises(SourceRefused, match=r"not trusted.*peers\.server_name"),
        ):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)


def test_strangers_certificates_are_not_trusted(
    shelf: FolderShelf, authority: Authority, tmp_path: Path
):
    stranger = Authority(tmp_path / "stranger").issue_peer("x")
    mine = authority.issue_peer("a")
    with serving(shelf, **tls(mine)) as server:
        with client(**tls(stranger)) as asking, pytest.raises(SourceRefused, match="not trusted"):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
        mixed = tls(stranger) | {"ca_file": str(mine.ca_file)}
        with client(**mixed) as asking, pytest.raises(SourceUnavailable):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
        with client() as asking, pytest.raises((SourceUnavailable, CorruptData)):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
        until(lambda: server.counters().troubles.get("tls", 0) >= 2)
    assert not shelf.heard


def test_only_allowed_names_may_ask(shelf: FolderShelf, authority: Authority):
    mine = authority.issue_peer("a")
    settings = tls(mine, allowed_names=("somebody",))
    with serving(shelf, **settings) as server, client(**tls(mine)) as asking:
        with pytest.raises(Forbidden, match="allowed_names"):
            asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
        somebody = authority.issue("s", "somebody", ("DNS:x",), usage="clientAuth")
    with serving(shelf, **settings) as server, client(**tls(somebody)) as asking:
        works(server, asking)


def test_renewed_certificates_are_used_while_both_run(
    shelf: FolderShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The whole cluster changes its authority: nobody is started anew."""
    monkeypatch.setattr(serving_module, "IDLE_S", 0.05)
    link = tmp_path / "current"
    for number in range(2):
        folder = tmp_path / str(number)
        issued = Authority(folder).issue_peer("tls")
        assert issued.ca_file.parent == folder
    link.symlink_to(tmp_path / "0")
    files = Certificates(link / "ca.pem", link / "tls.crt", link / "tls.key")
    settings = tls(files)
    first = {name: (tmp_path / "0" / Path(path).name) for name, path in settings.items()}
    before = {
        **settings,
        **{name: str(first[name]) for name in ("cert_file", "key_file", "ca_file")},
    }
    with serving(shelf, **settings) as server, client(**settings) as asking:
        works(server, asking)
        fresh = tmp_path / "fresh"
        fresh.symlink_to(tmp_path / "1")
        fresh.replace(link)
        until(lambda: server.counters().connections == 0)
        works(server, asking)
        with client(**before) as late, pytest.raises(SourceRefused, match="not trusted"):
            late.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)


def test_nodes_are_who_they_say_in_the_signature(shelf: FolderShelf, token_file: Path):
    auth = PeerAuth.of(PeerSettings(token_file=str(token_file)))
    asking = PeerClient(auth, NodeId("node-c"))
    with (
        serving(shelf, token_file=str(token_file)) as server,
        pytest.raises(Forbidden, match="only itself"),
    ):
        asking.announce(at(server.port), SAID, timeout_s=TIMEOUT_S)
    asking.close()
