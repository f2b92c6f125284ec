"""Reading from peers with the transfer engine's own requests, over real connections."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from modelcache.config import PeerSettings, TransferSettings
from modelcache.domain.manifests import File
from modelcache.domain.members import Member, NodeId
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    Forbidden,
    NotHeld,
    NotYet,
    OriginChanged,
    SourceUnavailable,
    Throttled,
    UsageError,
)
from modelcache.peers.auth import PeerAuth
from modelcache.peers.server import PeerServer
from modelcache.peers.source import PeerSource
from modelcache.planner import peer_source
from modelcache.sources.source import Source
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.http1 import endpoint_of
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Requests
from tests.peers.conftest import DATA
from tests.peers.support import CHUNK_BYTES, ME, OTHER, FolderShelf, blob_id, serving
from tests.peers.test_client import tls
from tests.servers.certificates import Authority

FILE = File("model.safetensors", len(DATA), "model.safetensors", blob_id())
GRID = ChunkGrid(len(DATA), CHUNK_BYTES)
LARGE = random.Random(2).randbytes(20 << 20)


class Peers:
    """What stands for peers in a transfer: a fresh source for each question, as agents have it."""

    def __init__(self, port: int, **settings: Any) -> None:
        self._auth = PeerAuth.of(PeerSettings(listen="127.0.0.1:0", **settings))
        self._member = Member("127.0.0.1", port)

    def source(self, node: NodeId) -> Source:
        return PeerSource(self._member, node, self._auth, me=OTHER, wait_s=0.05, priority=7)


@contextmanager
def reading(port: int, **settings: Any) -> Iterator[tuple[Requests, BlobJob]]:
    """A worker's requests, and a job of blob 0 whose origin is not to be asked."""
    peers = Peers(port, **settings)
    idle = IdleConnections(4)
    requests = Requests(TransferSettings(), idle, WorkerTimes())
    unasked: Any = None
    job = BlobJob(FILE, GRID, unasked, "origin", small=False, peers=peers)
    try:
        yield requests, job
    finally:
        requests.drop_open()
        idle.close()


def read(requests: Requests, job: BlobJob, span: ByteRange) -> tuple[bytes, tuple[bytes, ...]]:
    exchange = requests.send(job, peer_source(ME), span, SourceReport(), fresh=False)
    body = requests.receive(exchange)
    promised = requests.promised(exchange)
    data = bytearray(span.size_bytes)
    assert body.read_into(memoryview(data)) == len(data)
    requests.done(exchange)
    return bytes(data), promised


def reads_all(server: PeerServer, **settings: Any) -> None:
    with reading(server.port, **settings) as (requests, job):
        for chunk in range(GRID.count):
            span = GRID.span(chunk)
            data, promised = read(requests, job, span)
            assert data == DATA[span.start : span.end]
            assert promised == (xxhash.xxh3_128_digest(data),)
        assert read(requests, job, ByteRange(5, 9)) == (DATA[5:9], ())
        assert len(read(requests, job, GRID.span(0, GRID.count))[1]) == GRID.count
        assert server.counters().connections == 1  # kept between them


def test_chunks_come_with_their_hashes(shelf: FolderShelf):
    with serving(shelf) as server:
        reads_all(server)
    assert set(shelf.asked) == {(OTHER, 7, 0.05)}


def test_chunks_come_from_who_has_the_token(shelf: FolderShelf, token_file: Path):
    with serving(shelf, token_file=str(token_file)) as server:
        reads_all(server, token_file=str(token_file))


def test_chunks_come_over_tls(shelf: FolderShelf, authority: Authority, token_file: Path):
    mine, others = authority.issue_peer("a"), authority.issue_peer("b")
    secured = {"token_file": str(token_file)}
    shelf.add(blob_id(1), LARGE)
    with serving(shelf, **tls(mine, **secured)) as server:
        reads_all(server, **tls(others, **secured))
        with reading(server.port, **tls(others, **secured)) as (requests, job):
            file = replace(FILE, blob=blob_id(1), size_bytes=len(LARGE))
            large = BlobJob(file, GRID, job.source, "origin", small=False, peers=job._peers)
            assert read(requests, large, ByteRange(1, len(LARGE)))[0] == LARGE[1:]


def test_a_certificate_for_another_name_is_not_believed(shelf: FolderShelf, authority: Authority):
    mine, others = authority.issue_peer("a", "another-cluster"), authority.issue_peer("b")
    with (
        serving(shelf, **tls(mine)) as server,
        reading(server.port, **tls(others)) as (requests, job),
        pytest.raises(Exception, match="not trusted"),
    ):
        read(requests, job, GRID.span(0))


def test_connections_of_two_identities_are_not_mixed(authority: Authority):
    certificates = authority.issue_peer("a")
    first, second = (Peers(1, **tls(certificates)).source(ME).locate(FILE) for _ in range(2))
    assert endpoint_of(first) == endpoint_of(first)
    assert endpoint_of(first) != endpoint_of(second)
    assert endpoint_of(first) != endpoint_of(Peers(1).source(ME).locate(FILE))


# Refusals


def test_what_is_not_held_and_what_is_not_here_yet_are_told_apart(shelf: FolderShelf):
    with serving(shelf) as server, reading(server.port) as (requests, job):
        shelf.coming.add(blob_id())
        with pytest.raises(NotYet, match=f"{ME}.*127.0.0.1") as caught:
            read(requests, job, GRID.span(0))
        assert caught.value.retry_after_s == 1.0
        shelf.coming.clear()
        (shelf.folder / blob_id()).unlink()
        with pytest.raises(NotHeld):
            read(requests, job, GRID.span(0))
        shelf.add(blob_id(), DATA)
        assert read(requests, job, GRID.span(0))[0] == DATA[:CHUNK_BYTES]
        server.refuse()
        with pytest.raises(SourceUnavailable, match="about to leave") as left:
            read(requests, job, GRID.span(0))
        assert type(left.value) is SourceUnavailable


def test_a_blob_of_another_size_is_not_the_one(shelf: FolderShelf):
    shelf.add(blob_id(), DATA[:-1])
    with (
        serving(shelf) as server,
        reading(server.port) as (requests, job),
        pytest.raises(OriginChanged),
    ):
        read(requests, job, GRID.span(0))


def test_without_the_token_nothing_is_given(shelf: FolderShelf, token_file: Path):
    with (
        serving(shelf, token_file=str(token_file)) as server,
        reading(server.port) as (requests, job),
        pytest.raises(Forbidden, match="not signed"),
    ):
        read(requests, job, GRID.span(0))
    assert not shelf.asked


def test_what_has_no_token_cannot_pose_as_a_peer(shelf: FolderShelf, token_file: Path):
    with (
        serving(shelf) as impostor,
        reading(impostor.port, token_file=str(token_file)) as (requests, job),
        pytest.raises(Forbidden, match="does not have the cluster's token"),
    ):
        read(requests, job, GRID.span(0))


def test_what_was_signed_for_one_node_is_of_no_use_at_another(shelf: FolderShelf, token_file: Path):
    """Somebody has overheard a request, or was sent it at an address that was a peer's before."""
    secured = {"token_file": str(token_file)}
    with serving(shelf, **secured) as one, serving(shelf, me=NodeId("node-c"), **secured) as two:
        target = Peers(one.port, **secured).source(ME).locate(FILE)
        for server, to, status in (
            (one, ME, 206),
            (two, ME, 421),
            (two, "node-c", 403),
            (one, "node-c", 403),
        ):
            headers = {**dict(target.headers), "X-Modelcache-To": to, "Range": "bytes=0-9"}
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("GET", target.path, headers=headers)
            answer = connection.getresponse()
            assert answer.status == status
            assert (answer.read() == DATA[:10]) is (status == 206)
            connection.close()
    assert len(shelf.asked) == 1


def test_a_node_that_has_another_ones_address_now_is_not_asked_as_that_one(
    shelf: FolderShelf, token_file: Path
):
    secured = {"token_file": str(token_file)}
    with (
        serving(shelf, me=NodeId("node-c"), **secured) as server,
        reading(server.port, **secured) as (requests, job),
        pytest.raises(SourceUnavailable, match="node node-a is asked, and this is node node-c"),
    ):
        read(requests, job, GRID.span(0))


@pytest.mark.parametrize("field", ["Content-Range", "X-Modelcache-Xxh3", "X-Modelcache-Answer"])
def test_an_answer_that_was_changed_on_its_way_is_not_believed(
    shelf: FolderShelf, token_file: Path, field: str
):
    """What sits between two peers gives the right bytes another place, hash, or signature."""
    with serving(shelf, token_file=str(token_file)) as server:
        auth = PeerAuth.of(PeerSettings(token_file=str(token_file)))
        source = PeerSource(Member("127.0.0.1", server.port), ME, auth, me=OTHER, wait_s=1)
        target = source.locate(FILE)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(
            "GET", target.path, headers={**dict(target.headers), "Range": "bytes=0-1048575"}
        )
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        source.check_pin(FILE, headers)
        last = headers[field.lower()][-1]
        headers[field.lower()] = headers[field.lower()][:-1] + ("1" if last != "1" else "2")
        with pytest.raises(Forbidden):
            source.check_pin(FILE, headers)
        del headers[field.lower()]
        with pytest.raises(Forbidden):
            source.check_pin(FILE, headers)


def test_whole_blobs_are_signed_too(shelf: FolderShelf, token_file: Path):
    auth = PeerAuth.of(PeerSettings(token_file=str(token_file)))
    with serving(shelf, token_file=str(token_file)) as server:
        source = PeerSource(Member("127.0.0.1", server.port), ME, auth, me=OTHER, wait_s=1)
        target = source.locate(FILE)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", target.path, headers=dict(target.headers))
        headers = {n.lower(): v for n, v in connection.getresponse().getheaders()}
        connection.close()
        source.check_pin(FILE, headers)
        with pytest.raises(Forbidden):
            source.check_pin(FILE, {**headers, "content-length": "5"})


def source() -> PeerSource:
    auth = PeerAuth.of(PeerSettings())
    return PeerSource(Member("fd00::1", 9871), ME, auth, me=OTHER, wait_s=1.5)


def test_a_peer_cannot_be_asked_for_refs_here():
    with pytest.raises(UsageError):
        source().resolve(parse_ref("hf://org/name"))


def test_hashes_that_cannot_be_read_are_a_failure_of_that_peer():
    assert source().promised({}) == ()
    assert source().promised({"x-modelcache-xxh3": "00" * 16}) == (bytes(16),)
    for text in ("0" * 31, "g" * 32, ",", "0" * 32 + ",", "0" * 32 + ", " + "0" * 32):
        with pytest.raises(SourceUnavailable):
            source().promised({"x-modelcache-xxh3": text})


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_held", NotHeld),
        (503, "not_yet", NotYet),
        (503, "throttled", Throttled),
        (429, "", Throttled),
        (401, "", Forbidden),
        (500, "", SourceUnavailable),
        (504, "", SourceUnavailable),
    ],
)
def test_statuses_become_errors_by_remedy(status: int, code: str, kind: type[Exception]):
    body = f'{{"error":{{"code":"{code}","message":"x"}}}}'.encode()
    error = source().refusal(FILE, status, {"retry-after": "3"}, body)
    assert type(error) is kind
    assert getattr(error, "retry_after_s", 3.0) in {3.0, None}


def test_nobody_can_send_us_away_for_long():
    error = source().refusal(FILE, 503, {"retry-after": "99999999"}, b"")
    assert error.retry_after_s == 60.0
    assert source().refusal(FILE, 503, {"retry-after": "9" * 400}, b"").retry_after_s == 60.0
