"""The HTTP client against bytes on a real socket: framing, splitting, and answers gone wrong."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from time import monotonic, sleep

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modelcache.errors import SourceRefused, SourceUnavailable
from modelcache.sources.source import HttpTarget, ProxyAddress
from modelcache.transfer.http1 import ERROR_BODY_BYTES_MAX, HttpConnection, ResponseHead
from tests.servers.certificates import Certificates
from tests.sources.scripted import Reply, ScriptedServer
from tests.transfer.wire import WireServer, answers, read_request

BODY = bytes(range(256)) * 5


def plain(body: bytes = BODY, *lines: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + coded + b"0\r\n" + trailers + b"\r\n"


def ask(server: WireServer, connection: HttpConnection) -> tuple[ResponseHead, bytes]:
    """One request, its whole body read in pieces that fit no framing."""
    connection.send(server.target(), None)
    head = connection.read_head()
    body = bytearray()
    piece = memoryview(bytearray(97))
    while size := connection.read_into(piece):
        body += piece[:size]
    return head, bytes(body)


def asked(*pieces: bytes, close: bool = False) -> tuple[ResponseHead, bytes]:
    with WireServer(answers(pieces, close=close)) as server:
        return ask(server, server.connect())


# Framing


@pytest.mark.parametrize(
    "response",
    [
        plain(),
        chunked(BODY[:700], BODY[700:]),
        chunked(*(BODY[at : at + 1] for at in range(len(BODY)))),
        chunked(BODY, trailers=b"X-Checksum: 1\r\n"),
        chunked(BODY).replace(b"\r\n" + BODY[:3], b" ;name=value\r\n" + BODY[:3], 1),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(),
    ],
    ids=["length", "chunked", "tiny chunks", "trailers", "extension", "1xx first"],
)
def test_a_body_arrives_whole_and_the_connection_is_kept(response: bytes):
    with WireServer(answers([response], [response])) as server:
        connection = server.connect()
        for _ in range(2):
            head, body = ask(server, connection)
            assert (head.status, body) == (200, BODY)
            assert connection.finished()
        assert server.connections == 1


def test_a_body_without_a_length_ends_with_the_connection():
    with WireServer(answers([b"HTTP/1.1 200 OK\r\n\r\n" + BODY], close=True)) as server:
        connection = server.connect()
        assert ask(server, connection)[1] == BODY
        assert not connection.finished()


@examples(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cuts=st.lists(st.integers(1, 1500), max_size=6, unique=True).map(sorted),
    response=st.sampled_from(
        [
            plain(BODY, 'ETag: "x"', "X-Amz-Meta: a"),
            chunked(BODY[:3], BODY[3:900], BODY[900:]),
            b"HTTP/1.1 100 Continue\r\n\r\n" + plain(BODY),
            plain(b"", status="204 No Content"),
        ]
    ),
)
def test_it_does_not_matter_where_segments_end(cuts: list[int], response: bytes):
    cuts = [cut for cut in cuts if cut < len(response)]
    pieces = [response[a:b] for a, b in zip([0, *cuts], [*cuts, len(response)], strict=True)]
    head, body = asked(*pieces)
    whole, expected = asked(response)
    assert (head, body) == (whole, expected)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_answers_have_no_body_whatever_they_announce(status: str):
    response = f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode()
    assert asked(response)[1] == b""


@pytest.mark.parametrize(
    "response",
    [
        plain(BODY, "Connection: close"),
        plain(BODY, "Connection: Close"),
        plain(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_a_connection_that_will_be_closed_is_not_kept(response: bytes):
    with WireServer(answers([response])) as server:
        connection = server.connect()
        assert ask(server, connection)[1] == BODY
        assert not connection.finished()


def test_a_body_that_was_not_read_to_its_end_spoils_the_connection():
    with WireServer(answers([plain()])) as server:
        connection = server.connect()
        connection.send(server.target(), None)
        connection.read_head()
        assert connection.length_bytes == len(BODY)
        assert connection.read_into(memoryview(bytearray(100))) == 100
        assert connection.length_bytes == len(BODY) - 100
        assert not connection.finished()


# Heads


def test_header_names_are_lower_case_and_repeated_ones_joined():
    head, _ = asked(plain(b"", "X-One:  padded \t", "Set-Cookie: a", "set-cookie: b", "Empty:"))
    assert head.headers["x-one"] == "padded"
    assert head.headers["set-cookie"] == "a, b"
    assert head.headers["empty"] == ""


def test_header_values_may_have_colons_and_odd_bytes():
    head, _ = asked(
        b"HTTP/1.1 200 OK\r\nLocation: http://h:1/a:b\r\nX: caf\xe9\r\nContent-Length: 0\r\n\r\n"
    )
    assert head.headers["location"] == "http://h:1/a:b"
    assert head.headers["x"] == "caf\u00e9"


def test_a_reason_may_be_missing():
    assert asked(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")[0].status == 200


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/2 200\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmore than two", "more than it announced"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "head over 64 KiB"),
    ],
)
def test_an_answer_that_is_none_is_an_error_that_says_so(response: bytes, message: str):
    with pytest.raises(SourceUnavailable, match=message):
        asked(response)


@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (b"xyz\r\n", "malformed chunk size"),
        (b"-5\r\nabcde\r\n", "impossible chunk size"),
        (b"f" * 20 + b"\r\n", "impossible chunk size"),
        (b"5;" + b"e" * 2000, "endless chunk line"),
        (b"5\r\nab", "closed inside a chunk"),
        (b"5\r\nabcde\r\n", "closed inside a line"),
    ],
)
def test_a_broken_chunked_coding_is_an_error_that_says_so(coded: bytes, message: str):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(SourceUnavailable, match=message):
        asked(head + coded, close=True)


# Requests


def test_a_request_says_what_the_target_wants():
    seen: list[bytes] = []

    def talk(client: socket.socket) -> None:
        seen.append(read_request(client))
        client.sendall(plain())

    with WireServer(talk) as server:
        connection = server.connect()
        connection.send(server.target("/a%20b?versionId=1", Authorization="AWS4 x"), "bytes=0-9")
        connection.read_head()
        host = f"127.0.0.1:{server.port}"
    assert seen[0].decode().split("\r\n")[:4] == [
        "GET /a%20b?versionId=1 HTTP/1.1",
        "Authorization: AWS4 x",
        f"Host: {host}",
        "Range: bytes=0-9",
    ]


def test_an_ipv6_address_is_a_host_too():
    with WireServer(answers([plain()]), host="::1") as server:
        target = server.target(host="::1")
        connection = HttpConnection(target, connect_timeout_s=5, stall_timeout_s=5)
        connection.send(target, None)
        assert connection.read_head().status == 200
        connection.close()


# Connections that break


@pytest.mark.parametrize("sent", [0, 20, len(plain()) - 1])
def test_a_closed_connection_is_an_error(sent: int):
    with pytest.raises(SourceUnavailable, match="closed"):
        asked(plain()[:sent], close=True)


@pytest.mark.parametrize("sent", [0, 20, 200])
def test_a_reset_is_an_error(sent: int):
    def talk(client: socket.socket) -> None:
        read_request(client)
        client.sendall(plain()[:sent])
        sleep(0.05)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with WireServer(talk) as server, pytest.raises(SourceUnavailable, match="reset"):
        ask(server, server.connect())


@pytest.mark.parametrize("sent", [0, 20, 200])
def test_silence_is_an_error_in_time(sent: int):
    with WireServer(answers([plain()[:sent]])) as server:
        connection = server.connect(stall_timeout_s=0.3)
        started_s = monotonic()
        with pytest.raises(SourceUnavailable, match="no answer in time"):
            ask(server, connection)
        assert 0.2 < monotonic() - started_s < 4.0
        assert not connection.finished()


def test_a_slow_body_is_no_silence():
    """The limit is on silence, not on the time a block takes."""
    pieces = [plain()[:200], *(plain()[at : at + 108] for at in range(200, len(plain()), 108))]

    def talk(client: socket.socket) -> None:
        read_request(client)
        for piece in pieces:
            client.sendall(piece)
            sleep(0.1)

    with WireServer(talk) as server:
        connection = server.connect(stall_timeout_s=0.4)
        connection.send(server.target(), None)
        connection.read_head()
        body = bytearray(len(BODY))
        assert connection.read_into(memoryview(body)) == len(BODY)
        assert body == BODY


def test_another_thread_can_end_a_read():
    with WireServer(answers([plain()[:200]])) as server:
        connection = server.connect(stall_timeout_s=30.0)
        threading.Timer(0.2, connection.abort).start()
        started_s = monotonic()
        with pytest.raises(SourceUnavailable):
            ask(server, connection)
        assert monotonic() - started_s < 10.0
        connection.close()
        connection.abort()  # harmless


def test_an_endless_error_page_is_cut():
    body = b"e" * (ERROR_BODY_BYTES_MAX + 10)
    with WireServer(answers([plain(body, status="500 No")])) as server:
        connection = server.connect()
        connection.send(server.target(), None)
        assert connection.read_head().status == 500
        assert connection.read_error_body() == body[:ERROR_BODY_BYTES_MAX]
        assert not connection.finished()


def test_nobody_there_is_an_error():
    with WireServer(answers()) as server:
        target = server.target()
    with pytest.raises(SourceUnavailable, match=r"cannot connect to 127\.0\.0\.1:\d+: .*refused"):
        HttpConnection(target, connect_timeout_s=1, stall_timeout_s=1)


def test_no_such_host_is_an_error():
    target = HttpTarget("nowhere.invalid", 80, False, "/", (), 60.0, None, None)
    with pytest.raises(SourceUnavailable, match=r"host nowhere\.invalid cannot be found"):
        HttpConnection(target, connect_timeout_s=1, stall_timeout_s=1)


# TLS and proxies


def tls_target(
    server: ScriptedServer, ca_file: str | None, proxy: ProxyAddress | None = None
) -> HttpTarget:
    return HttpTarget("127.0.0.1", server.port, True, "/x", (), 60.0, ca_file, proxy)


def test_a_body_arrives_over_tls(certificates: Certificates):
    body = BODY * 1000
    with ScriptedServer(_both(certificates)) as server:
        server.answers["/x"] = lambda _: Reply(body=body)
        target = tls_target(server, str(certificates.ca_file))
        connection = HttpConnection(target, connect_timeout_s=5, stall_timeout_s=5)
        for _ in range(2):
            connection.send(target, None)
            assert connection.read_head().status == 200
            got = bytearray(len(body))
            assert connection.read_into(memoryview(got)) == len(body)
            assert got == body
            assert connection.finished()
        connection.close()


def test_a_certificate_of_a_stranger_is_refused_for_good(certificates: Certificates):
    with (
        ScriptedServer(_both(certificates)) as server,
        pytest.raises(SourceRefused, match=r"not trusted.*set ca_file"),
    ):
        HttpConnection(tls_target(server, None), connect_timeout_s=5, stall_timeout_s=5)


def test_authorities_that_cannot_be_read_are_said(certificates: Certificates):
    with (
        ScriptedServer(_both(certificates)) as server,
        pytest.raises(SourceRefused, match=r"cannot read trusted certificates /no/such\.pem"),
    ):
        HttpConnection(tls_target(server, "/no/such.pem"), connect_timeout_s=5, stall_timeout_s=5)


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_refuses_a_tunnel_is_named(certificates: Certificates, status: int):
    with ScriptedServer() as proxy, ScriptedServer(_both(certificates)) as server:
        proxy.answers["CONNECT"] = lambda _: Reply(status)
        address = ProxyAddress("127.0.0.1", proxy.port)
        target = tls_target(server, str(certificates.ca_file), proxy=address)
        with pytest.raises(SourceUnavailable, match=f"proxy .* refused a tunnel .*: {status}"):
            HttpConnection(target, connect_timeout_s=5, stall_timeout_s=5)


def _both(certificates: Certificates) -> Path:
    """Certificate and key in one file, as the server wants them."""
    both = certificates.cert_file.with_name("both.pem")
    both.write_bytes(certificates.key_file.read_bytes() + certificates.cert_file.read_bytes())
    return both
