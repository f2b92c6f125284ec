"""Requests over kept connections: which are kept, which have gone stale, what is checked."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest

from modelcache.config import TransferSettings
from modelcache.domain.manifests import BlobId, Checksum, File, Manifest
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.domain.refs import Ref
from modelcache.errors import Forbidden, ModelcacheError, OriginChanged, SourceUnavailable
from modelcache.planner import SourceId
from modelcache.sources.source import HttpTarget
from modelcache.transfer import connections
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Requests
from tests.transfer.wire import WireServer, answers, read_request

KEPT = 4
BODY = b"0123456789"
FILE = File("x", len(BODY), "x", BlobId("origin-1"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY


class WireSource:
    """The source of one file on a wire server; it believes every answer but those with a code."""

    def __init__(self, server: WireServer, good_for_s: float = 60.0) -> None:
        self.server = server
        self.good_for_s = good_for_s
        self.located: list[bool] = []

    def resolve(self, ref: Ref) -> Manifest:
        raise NotImplementedError

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        self.located.append(fresh)
        host, path = "127.0.0.1", f"/{file.key}"
        return HttpTarget(host, self.server.port, False, path, (), self.good_for_s)

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        if headers.get("etag", "") == '"other"':
            raise OriginChanged(file.path)

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        del file, headers
        return ()

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        del headers
        return Forbidden(f"{file.path}: {status} {body.decode()}")


class Asking:
    """One worker's requests to one server."""

    def __init__(self, server: WireServer, **source: float) -> None:
        self.source = WireSource(server, **source)
        self.report = SourceReport()
        self.idle = IdleConnections(KEPT)
        self.requests = Requests(TransferSettings(stall_timeout_s=5.0), self.idle, WorkerTimes())
        grid = ChunkGrid(FILE.size_bytes, 1 << 21)
        self.job = BlobJob(FILE, grid, self.source, SourceId("origin"), small=True)

    def read(self, span: ByteRange | None = None, *, fresh: bool = False) -> bytes:
        exchange = self.requests.send(self.job, SourceId("origin"), span, self.report, fresh=fresh)
        body = self.requests.receive(exchange)
        buffer = bytearray(span.size_bytes if span else FILE.size_bytes)
        assert body.read_into(memoryview(buffer)) == len(buffer)
        self.requests.done(exchange)
        return bytes(buffer)


def test_a_connection_serves_one_request_after_the_other():
    with WireServer(answers([OK], [OK], [OK])) as server:
        asking = Asking(server)
        assert [asking.read() for _ in range(3)] == [BODY] * 3
        assert server.connections == asking.report.connections == 1
        assert asking.report.requests == 3
        asking.idle.close()


def test_a_kept_connection_that_its_server_closed_costs_nothing_but_a_new_one():
    """Servers close idle connections at any time; that is nobody's failure."""
    with WireServer(answers([OK], close=True)) as server:
        asking = Asking(server)
        assert [asking.read() for _ in range(3)] == [BODY] * 3
        assert server.connections == 3
        asking.idle.close()


def test_a_fresh_connection_that_is_closed_is_a_failure():
    with WireServer(answers(close=True)) as server:
        asking = Asking(server)
        with pytest.raises(SourceUnavailable):
            asking.read()
        asking.idle.close()


def test_a_connection_that_stays_idle_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch):
    with WireServer(answers([OK], [OK])) as server:
        asking = Asking(server)
        asking.read()
        monkeypatch.setattr(connections, "IDLE_S", -1.0)
        asking.read()
        assert server.connections == 2
        asking.idle.close()


def test_an_answer_that_was_not_read_closes_its_connection():
    with WireServer(answers([OK], [OK])) as server:
        asking = Asking(server)
        exchange = asking.requests.send(
            asking.job, SourceId("origin"), None, asking.report, fresh=False
        )
        asking.requests.receive(exchange)
        asking.requests.drop_open()
        assert asking.read() == BODY
        assert server.connections == 2
        asking.idle.close()


def test_only_so_many_connections_are_kept():
    with WireServer(answers([OK], [OK])) as server:
        asking = Asking(server)
        send = asking.requests.send
        every = [
            send(asking.job, SourceId("origin"), None, asking.report, fresh=False)
            for _ in range(KEPT + 3)
        ]
        for exchange in every:
            body = asking.requests.receive(exchange)
            body.read_into(memoryview(bytearray(len(BODY))))
            asking.requests.done(exchange)
        kept = [exchange for exchange in every if exchange.connection.reusable]  # type: ignore[union-attr]
        assert len(kept) == KEPT
        asking.idle.close()


def test_a_refusal_is_the_sources_to_explain_and_the_connection_is_kept():
    refused = b"HTTP/1.1 403 No\r\nContent-Length: 6\r\n\r\nreason"
    with WireServer(answers([refused], [OK])) as server:
        asking = Asking(server)
        with pytest.raises(Forbidden, match="x: 403 reason"):
            asking.read()
        assert asking.read() == BODY
        assert server.connections == 1
        asking.idle.close()


def test_an_answer_is_compared_with_the_pin_before_a_byte_of_it():
    changed = OK.replace(b"\r\n\r\n", b'\r\nETag: "other"\r\n\r\n', 1)
    with WireServer(answers([changed])) as server:
        asking = Asking(server)
        with pytest.raises(OriginChanged):
            asking.read()
        asking.requests.drop_open()
        asking.idle.close()


def test_a_range_that_was_ignored_is_not_believed():
    with WireServer(answers([OK])) as server:
        asking = Asking(server)
        with pytest.raises(SourceUnavailable, match="ignored the range"):
            asking.read(ByteRange(2, 5))
        asking.requests.drop_open()
        asking.idle.close()


def test_a_range_is_asked_for_by_its_first_and_last_byte():
    seen: list[bytes] = []
    partial = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\n\r\n234"

    def talk(client: socket.socket) -> None:
        seen.append(read_request(client))
        client.sendall(partial)

    with WireServer(talk) as server:
        asking = Asking(server)
        assert asking.read(ByteRange(2, 5)) == b"234"
        asking.idle.close()
    assert b"\r\nRange: bytes=2-4\r\n" in seen[0]


def test_a_target_is_located_once_and_again_when_it_grows_old_or_is_doubted():
    with WireServer(answers(*[[OK]] * 5)) as server:
        asking = Asking(server)
        asking.read()
        asking.read()
        assert asking.source.located == [False]
        asking.read(fresh=True)
        assert asking.source.located == [False, True]
        asking.idle.close()
        old = Asking(server, good_for_s=1.0)  # less than the margin
        old.read()
        old.read()
        assert old.source.located == [False, False]
        old.idle.close()


def test_another_thread_wakes_up_who_waits():
    with WireServer(answers([OK[:20]])) as server:
        asking = Asking(server)
        exchange = asking.requests.send(
            asking.job, SourceId("origin"), None, asking.report, fresh=False
        )
        asking.requests.abort()
        with pytest.raises(SourceUnavailable):
            asking.requests.receive(exchange)
        asking.idle.close()


def test_who_was_woken_up_does_not_ask_once_more():
    """Else a kept connection that was aborted would look like one that its server has closed."""
    with WireServer(answers([OK], [OK[:20]])) as server:
        asking = Asking(server)
        asking.read()
        exchange = asking.requests.send(
            asking.job, SourceId("origin"), None, asking.report, fresh=False
        )
        asking.requests.abort()
        with pytest.raises(SourceUnavailable):
            asking.requests.receive(exchange)
        with pytest.raises(SourceUnavailable, match="aborted"):
            asking.read()
        asking.requests.begin()
        assert asking.read() == BODY
        asking.idle.close()
