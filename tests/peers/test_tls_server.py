"""The peer plane's server over TLS: slow receivers, handshakes that do not end, and its buffers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from modelcache.config import PeerSettings
from modelcache.peers import sending
from modelcache.peers import server as server_module
from modelcache.peers import serving as serving_module
from modelcache.peers.auth import PeerAuth
from modelcache.peers.server import PeerServer
from tests.peers.support import FolderShelf, blob_id, read_answer, serving, until
from tests.peers.test_client import tls
from tests.servers.certificates import Authority, Certificates

LARGE_BYTES = 48 << 20


@pytest.fixture
def certificates(authority: Authority) -> Certificates:
    return authority.issue_peer("a")


@contextmanager
def receiver(
    server: PeerServer, certificates: Certificates, node: str = "n"
) -> Iterator[ssl.SSLSocket]:
    """A peer that asks for blob 1, and reads as fast as the test does."""
    auth = PeerAuth.of(PeerSettings(**tls(certificates)))
    assert auth.tls is not None
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        auth.tls.client_context().wrap_socket(plain, server_hostname="modelcache-peer") as client,
    ):
        client.sendall(
            f"GET /v1/blobs/{blob_id(1)} HTTP/1.1\r\nX-Modelcache-Node: {node}\r\n\r\n".encode()
        )
        yield client


def test_a_receiver_that_takes_nothing_is_dropped(
    shelf: FolderShelf, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sending, "STALL_S", 0.5)
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf, **tls(certificates)) as server, receiver(server, certificates):
        until(lambda: server.counters().troubles.get("slow", 0) == 1)
        until(lambda: server.counters().connections == 0)


def test_a_handshake_that_does_not_end_is_not_waited_for(
    shelf: FolderShelf, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving_module, "HANDSHAKE_S", 0.1)
    with serving(shelf, **tls(certificates)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(b"\x16\x03\x01")
            assert client.recv(1) == b""
        until(lambda: server.counters().troubles == {"slow": 1})


def test_buffers_are_as_many_as_turns_however_many_ask(
    shelf: FolderShelf, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "SENDS_MAX", 2)
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    results: list[tuple[int, int]] = []
    with serving(shelf, **tls(certificates)) as server, ExitStack() as stack:
        clients = [
            stack.enter_context(receiver(server, certificates, f"n{number}")) for number in range(6)
        ]
        threads = [
            threading.Thread(target=lambda each=each: results.append(read_answer(each)))
            for each in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [(200, LARGE_BYTES)] * 6
        assert len(server._tools.turns._buffers) <= 2


def test_closing_ends_sends_that_are_encrypted(shelf: FolderShelf, certificates: Certificates):
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf, **tls(certificates)) as server, receiver(server, certificates):
        until(lambda: bool(server.counters().peers) and server.counters().peers[0].sending == 1)
        server.close()
        assert server.counters().connections == 0
    assert not any(each.name == "modelcache-peer" for each in threading.enumerate())
