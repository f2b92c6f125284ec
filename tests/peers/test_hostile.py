"""What a server must survive: bytes that are no requests, and peers that do not behave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modelcache.errors import CorruptData, UsageError
from modelcache.peers import serving as serving_module
from modelcache.peers.messages import ANNOUNCEMENT_BYTES_MAX
from modelcache.peers.requests import RangeAsked, Request
from modelcache.peers.server import PeerServer
from modelcache.peers.wire import FIELDS_MAX, HEAD_BYTES_MAX, parse_head
from tests.peers.conftest import DATA
from tests.peers.support import FolderShelf, ask, blob_id, get, say, serving, until

GOOD = f"GET /v1/blobs/{blob_id()} HTTP/1.1\r\nX-Modelcache-Node: n\r\nRange: bytes=0-9\r\n"


@pytest.fixture
def server(shelf: FolderShelf) -> Iterator[PeerServer]:
    with serving(shelf) as running:
        yield running


def is_well(server: PeerServer) -> bool:
    return get(server, blob_id(), "bytes=0-9")[2] == DATA[:10]


@pytest.mark.parametrize(
    "head",
    [
        "GET",
        "GET / HTTP/1.1",  # nobody asks
        "GET  / HTTP/1.1\r\nX-Modelcache-Node: n",
        "get / HTTP/1.1\r\nX-Modelcache-Node: n",
        "PUT / HTTP/1.1\r\nX-Modelcache-Node: n",
        "GET / HTTP/2.0\r\nX-Modelcache-Node: n",
        "GET http://elsewhere/ HTTP/1.1\r\nX-Modelcache-Node: n",
        "GET /\x00 HTTP/1.1\r\nX-Modelcache-Node: n",
        "GET /é HTTP/1.1\r\nX-Modelcache-Node: n",
        f"GET /{'x' * 2000} HTTP/1.1\r\nX-Modelcache-Node: n",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: ../n",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n, n",
        "GET / HTTP/1.1\r\nX-Modelcache-Node : n",
        "GET / HTTP/1.1\r\n X-Modelcache-Node: n",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\n folded",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\nX: y",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nRange: bytes=0-1\r\nRange: bytes=2-3",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Wait: -1",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Wait: nan",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Wait: 1e9",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Priority: high",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Priority: 1000",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n" + "\r\nX: y" * FIELDS_MAX,
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nX: " + "y" * HEAD_BYTES_MAX,
        "POST /v1/announce HTTP/1.1\r\nX-Modelcache-Node: n\r\nX-Modelcache-Digest: x",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nContent-Length: 5",
        "GET / HTTP/1.1\r\nX-Modelcache-Node: n\r\nTransfer-Encoding: chunked",
    ],
)
def test_odd_requests_are_refused_and_the_connection_closed(server: PeerServer, head: str):
    answer = say(server, head.encode("latin-1") + b"\r\n\r\n" + GOOD.encode() + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1") <= 2  # one more where the message says it
    assert is_well(server)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ("Content-Length: x", b""),
        ("Content-Length: -1", b""),
        ("Content-Length: 5, 5", b"12345"),
        ("Content-Length: 5\r\nContent-Length: 6", b"123456"),
        (f"Content-Length: {ANNOUNCEMENT_BYTES_MAX + 1}", b""),
        (f"Content-Length: {'9' * 30}", b""),
        ("Transfer-Encoding: chunked", b"0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", b"{}"),
        ("Content-Length: 2", b"{}"),
        ("", b""),
    ],
)
def test_odd_bodies_are_refused_and_not_taken_for_requests(
    server: PeerServer, shelf: FolderShelf, fields: str, body: bytes
):
    head = f"POST /v1/announce HTTP/1.1\r\nX-Modelcache-Node: n\r\n{fields}\r\n\r\n"
    answer = say(server, head.replace("\r\n\r\n\r\n", "\r\n\r\n").encode() + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not shelf.heard
    assert is_well(server)


def test_a_body_that_does_not_match_its_digest_is_refused(server: PeerServer):
    found = ask(server, "/v1/resolve", method="POST", body=b"{}", X_Modelcache_Digest="0" * 64)
    assert found[0] == 403


def test_a_large_refused_body_does_not_cost_the_answer(server: PeerServer):
    body = b"x" * (ANNOUNCEMENT_BYTES_MAX + 1)
    status, _, said = ask(server, "/v1/announce", method="POST", body=body)
    assert status == 400
    assert b"allowed" in said


def test_who_asks_whether_to_go_on_is_told_to(server: PeerServer):
    body = b'{"ref":"hf://a/b","max_age_s":0,"stale":false}'
    head = (
        "POST /v1/resolve HTTP/1.1\r\nX-Modelcache-Node: n\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head.encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_requests_that_are_sent_together_are_answered_one_by_one(server: PeerServer):
    answer = say(server, (GOOD + "\r\n").encode() * 3)
    assert answer.count(b"HTTP/1.1 206 Partial Content") == 3
    assert answer.count(DATA[:10]) == 3


def test_requests_that_come_byte_by_byte_are_understood(server: PeerServer):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in (GOOD + "\r\n").encode():
            client.sendall(bytes([byte]))
        assert client.recv(1000).startswith(b"HTTP/1.1 206 ")


def test_a_connection_of_http_1_0_is_closed_after_its_answer(server: PeerServer):
    answer = say(server, (GOOD.replace("1.1", "1.0") + "\r\n").encode() * 2)
    assert answer.count(b"HTTP/1.1 206") == 1
    assert b"Connection: close" in answer


def test_a_head_that_does_not_end_is_not_waited_for(
    server: PeerServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving_module, "HEAD_S", 0.1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET / HT")
        assert client.recv(1) == b""
    until(lambda: server.counters().troubles == {"slow": 1})


def test_a_body_that_does_not_come_is_not_waited_for(
    server: PeerServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving_module, "BODY_S", 0.1)
    head = "POST /v1/announce HTTP/1.1\r\nX-Modelcache-Node: n\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head.encode() + b"{")
        assert client.recv(1) == b""
    until(lambda: server.counters().troubles == {"slow": 1})


def test_connections_that_are_reset_leave_nothing(server: PeerServer, shelf: FolderShelf):
    shelf.add(blob_id(1), bytes(64 << 20))
    for number in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            head = GOOD.replace(blob_id(), blob_id(1)).replace("0-9", "0-60000000")
            client.sendall((head + "\r\n").encode()[: 20 * number])
    until(lambda: server.counters().connections == 0)
    until(lambda: not any(t.name == "modelcache-peer" for t in threading.enumerate()))
    assert is_well(server)


@given(st.binary(max_size=300))
@examples(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_survived(server: PeerServer, data: bytes):
    answer = say(server, data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@given(st.data())
@examples(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_good_requests_with_a_fault_are_survived(server: PeerServer, data: st.DataObject):
    request = bytearray((GOOD + "\r\n").encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(request) - 1))
        request[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    answer = say(server, bytes(request))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


def test_after_all_that_it_serves(server: PeerServer):
    assert is_well(server)


@given(st.binary(max_size=200))
def test_any_head_is_read_or_refused(head: bytes):
    try:
        parse_head(head)
        Request.parse(head)
    except (CorruptData, UsageError):
        return


@given(
    st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(min_value=0, max_value=10**9)
)
def test_any_range_lies_within_its_file(text: str, total_bytes: int):
    try:
        asked = RangeAsked.parse(text)
    except UsageError:
        return
    span = asked.within(total_bytes)
    assert span is None or 0 <= span.start < span.end <= total_bytes
