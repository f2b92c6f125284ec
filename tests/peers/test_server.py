"""The peer plane's server: ranges of blobs over real connections."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest
import xxhash

from modelcache.domain.members import Member, NodeId
from modelcache.errors import (
    InvalidConfig,
    NotFound,
    SourceRefused,
    SourceUnavailable,
    StoreError,
)
from modelcache.peers import sending
from modelcache.peers import server as server_module
from modelcache.peers import serving as serving_module
from modelcache.peers.counters import PeerCounts
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.server import PeerServer
from tests.peers.conftest import DATA
from tests.peers.support import (
    CHUNK_BYTES,
    ME,
    OTHER,
    FolderShelf,
    ask,
    blob_id,
    get,
    read_answer,
    receiver,
    serving,
    until,
)

LARGE_BYTES = 64 << 20  # more than socket buffers hold


# Ranges


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-1048575", 0, CHUNK_BYTES),
        ("bytes=1048576-2097151", CHUNK_BYTES, 2 * CHUNK_BYTES),
        (f"bytes=5-{len(DATA) - 1}", 5, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA) + 5}", len(DATA) - 1, len(DATA)),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=-99999999", 0, len(DATA)),
        ("bytes=3-999999999999999999", 3, len(DATA)),
    ],
)
def test_a_range_is_answered_exactly(shelf: FolderShelf, asked: str, start: int, end: int):
    with serving(shelf) as server:
        status, fields, body = get(server, blob_id(), asked)
    assert status == 206
    assert body == DATA[start:end]
    assert fields["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert fields["content-length"] == str(end - start)


def test_without_a_range_the_whole_blob_comes(shelf: FolderShelf):
    with serving(shelf) as server:
        status, fields, body = ask(server, f"/v1/blobs/{blob_id()}")
    assert (status, body) == (200, DATA)
    assert "content-range" not in fields


def test_head_tells_the_size_and_the_connection_goes_on(shelf: FolderShelf):
    with serving(shelf) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(3):
            connection.request("HEAD", f"/v1/blobs/{blob_id()}", headers={"X-Modelcache-Node": "n"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert answer.getheader("Content-Length") == str(len(DATA))
        connection.request("HEAD", f"/v1/blobs/{blob_id(5)}", headers={"X-Modelcache-Node": "n"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"")
        connection.close()
        assert server.counters().peers[0].requests == 4


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", f"bytes={len(DATA)}-{len(DATA)}"])
def test_a_range_behind_the_end_is_not_satisfiable(shelf: FolderShelf, asked: str):
    with serving(shelf) as server:
        status, fields, body = get(server, blob_id(), asked)
    assert (status, body) == (416, b"")
    assert fields["content-range"] == f"bytes */{len(DATA)}"


def test_an_empty_blob_has_no_range(shelf: FolderShelf):
    shelf.add(blob_id(1), b"")
    with serving(shelf) as server:
        assert get(server, blob_id(1), "bytes=0-0")[0] == 416
        assert get(server, blob_id(1), "bytes=-5")[0] == 416


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=5-4",
        "bytes=0-1,4-5",
        "bytes=-",
        "bytes",
        "items=0-1",
        "bytes= 0-1",
        "bytes=0x1-2",
        "bytes=-0,",
        f"bytes=0-{'9' * 40}",
        "bytes=\u00b2-3",
    ],
)
def test_what_is_no_range_is_refused(shelf: FolderShelf, asked: str):
    with serving(shelf) as server:
        status, _, body = get(server, blob_id(), asked)
    assert status == 400
    assert b"Range" in body


def test_hashes_come_with_ranges_that_are_cut_at_chunks(shelf: FolderShelf):
    chunks = [DATA[at : at + CHUNK_BYTES] for at in range(0, len(DATA), CHUNK_BYTES)]
    expected = [xxhash.xxh3_128_hexdigest(chunk) for chunk in chunks]
    with serving(shelf) as server:
        for asked, count in (("bytes=0-1048575", 1), (f"bytes=0-{len(DATA) - 1}", 3)):
            fields = get(server, blob_id(), asked)[1]
            assert fields["x-modelcache-xxh3"].split(",") == expected[:count]
        assert "x-modelcache-xxh3" not in get(server, blob_id(), "bytes=1-1048575")[1]
        assert "x-modelcache-xxh3" not in get(server, blob_id(), "bytes=1048577-9999999")[1]


# Names


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "%2e%2e%2fetc%2fpasswd",
        f"../blobs/{blob_id()}",
        f"{blob_id()}/..",
        f"{blob_id()}?x",
        f"{blob_id()}%00",
        f"{blob_id()}/",
        blob_id().upper(),
        "sha256-",
        "",
        "x" * 1000,
    ],
)
def test_what_is_no_blob_is_not_found(shelf: FolderShelf, name: str):
    with serving(shelf) as server:
        assert ask(server, f"/v1/blobs/{name}")[0] == 404
        assert not shelf.asked


def test_a_blob_that_is_not_here_is_not_held(shelf: FolderShelf):
    with serving(shelf) as server:
        status, _, body = get(server, blob_id(9), "bytes=0-1")
        assert status == 404
        assert b'"not_held"' in body
        assert server.counters().peers[0].refusals == {"not_held": 1}


# Waiting


def test_a_chunk_that_arrives_while_it_is_asked_for_is_given(shelf: FolderShelf):
    shelf.coming.add(blob_id(3))
    with serving(shelf) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(get, server, blob_id(3), "bytes=0-9", X_Modelcache_Wait="15")
        until(lambda: shelf.waiting == 1)
        assert server.counters().peers[0].waiting == 1
        shelf.add(blob_id(3), DATA)
        assert asked.result(timeout=20)[2] == DATA[:10]
        assert server.counters().peers[0].waiting == 0


def test_nothing_waits_for_a_peer_that_has_gone(shelf: FolderShelf):
    shelf.coming.add(blob_id(3))
    with serving(shelf, wait_s=3600.0) as server:
        with receiver(server, blob_id(3), X_Modelcache_Wait="3600"):
            until(lambda: shelf.waiting == 1)
        until(lambda: shelf.waiting == 0 and server.counters().connections == 0)


def test_a_chunk_that_does_not_arrive_is_asked_for_again_later(shelf: FolderShelf):
    shelf.coming.add(blob_id(3))
    with serving(shelf) as server:
        status, fields, body = get(server, blob_id(3), "bytes=0-9", X_Modelcache_Wait="0.05")
    assert status == 503
    assert b'"not_yet"' in body
    assert fields["retry-after"] == "1"


def test_nobody_waits_longer_than_the_settings_allow(shelf: FolderShelf):
    with serving(shelf, wait_s=0.5) as server:
        get(server, blob_id(), "bytes=0-1", X_Modelcache_Wait="99999", X_Modelcache_Priority="7")
        get(server, blob_id(), "bytes=0-1")
    assert shelf.asked == [(OTHER, 7, 0.5), (OTHER, 50, 0.0)]


# Messages


def test_announcements_go_both_ways(shelf: FolderShelf):
    said = Announcement(OTHER, Member("10.0.0.2", 9871, "zone-1"))
    with serving(shelf) as server:
        status, _, body = ask(server, "/v1/announce", method="POST", body=said.to_json())
    assert status == 200
    assert shelf.heard == [said]
    assert Announcement.from_json(body).node == ME


def test_nobody_announces_another(shelf: FolderShelf):
    said = Announcement(ME, Member("10.0.0.2", 9871))
    with serving(shelf) as server:
        assert ask(server, "/v1/announce", method="POST", body=said.to_json())[0] == 403
    assert not shelf.heard


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("no such model"), 404),
        (SourceUnavailable("the hub is down"), 502),
        (SourceRefused("not for you"), 422),
    ],
)
def test_what_a_ref_means_can_be_asked(shelf: FolderShelf, error: Exception, status: int):
    asked = ResolveRequest("hf://org/name", 60.0, stale=True)

    def fail(_: ResolveRequest) -> bytes:
        raise error

    with serving(shelf) as server:
        body = asked.to_json()
        assert ask(server, "/v1/resolve", method="POST", body=body)[2] == b"hf://org/name"
        shelf.answer = fail
        found = ask(server, "/v1/resolve", method="POST", body=body)
    assert found[0] == status
    assert str(error).encode() in found[2]
    assert shelf.resolved == [asked, asked]


def test_what_failed_inside_is_not_told_to_others(shelf: FolderShelf):
    def fail(_: ResolveRequest) -> bytes:
        raise StoreError("/var/lib/modelcache/blobs cannot be read")

    shelf.answer = fail
    body = ResolveRequest("hf://org/name", 0.0).to_json()
    with serving(shelf) as server:
        status, _, said = ask(server, "/v1/resolve", method="POST", body=body)
    assert status == 500
    assert b"/var/lib" not in said


# Many, and slow ones


def test_many_connections_at_once_get_what_they_ask_for(shelf: FolderShelf):
    def read(number: int) -> bool:
        start = number * 1000
        body = get(server, blob_id(), f"bytes={start}-{start + 99_999}", node=f"n{number % 8}")[2]
        return body == DATA[start : start + 100_000]

    with serving(shelf) as server, ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(400)))
        until(lambda: served_bytes(server) == 400 * 100_000)  # the last is counted once it is sent


def test_a_peer_with_many_connections_does_not_keep_others_waiting(
    shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "SENDS_MAX", 4)
    monkeypatch.setattr(server_module, "SENDS_PER_PEER_MAX", 3)
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf) as server, ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(receiver(server, blob_id(1), "greedy"))
        until(lambda: counts(server, "greedy").sending == 3)  # and none of them reads
        until(lambda: counts(server, "greedy").waiting == 9)
        with receiver(server, blob_id(1), "modest") as client:
            assert read_answer(client) == (200, LARGE_BYTES)
        assert counts(server, "greedy").sending == 3


def served_bytes(server: PeerServer) -> int:
    return sum(peer.served_bytes for peer in server.counters().peers)


def counts(server: PeerServer, node: str) -> PeerCounts:
    """Of one peer; nothing before it is known."""
    nothing = PeerCounts(NodeId(node), 0, 0, 0, 0, {})
    return next((peer for peer in server.counters().peers if peer.node == node), nothing)


def test_a_receiver_that_takes_nothing_is_dropped(
    shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sending, "STALL_S", 1.0)
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf) as server, receiver(server, blob_id(1)):
        until(lambda: server.counters().troubles.get("slow", 0) == 1)
        until(lambda: server.counters().connections == 0)


def test_more_connections_than_may_be_take_the_place_of_idle_ones(shelf: FolderShelf):
    with serving(shelf, connections_max=4) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        until(lambda: server.counters().connections == 4)
        assert get(server, blob_id(), "bytes=0-9")[2] == DATA[:10]
        idle[0].settimeout(10)
        assert idle[0].recv(1) == b""  # the one that had waited longest
        for each in idle:
            each.close()


def test_when_all_are_busy_a_new_connection_is_turned_away(shelf: FolderShelf):
    shelf.coming.add(blob_id(3))
    with serving(shelf, connections_max=2) as server, ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(get, server, blob_id(3), "bytes=0-9", X_Modelcache_Wait="15", node=node)
            for node in ("a", "b")
        ]
        until(lambda: shelf.waiting == 2)
        status, fields, _ = get(server, blob_id(), "bytes=0-9")
        assert (status, fields["retry-after"]) == (503, "1")
        shelf.add(blob_id(3), DATA)
        assert [each.result()[0] for each in asked] == [206, 206]


def test_one_peer_cannot_have_more_connections_than_its_share(shelf: FolderShelf):
    shelf.coming.add(blob_id(3))
    with serving(shelf, connections_per_peer_max=2) as server, ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(get, server, blob_id(3), "bytes=0-9", X_Modelcache_Wait="15")
            for _ in range(2)
        ]
        until(lambda: shelf.waiting == 2)
        status, fields, body = get(server, blob_id(), "bytes=0-9")
        assert (status, fields["retry-after"]) == (503, "1")
        assert b"throttled" in body
        assert get(server, blob_id(), "bytes=0-9", node="another")[0] == 206
        shelf.add(blob_id(3), DATA)
        assert [each.result()[0] for each in asked] == [206, 206]


def test_a_limit_on_bandwidth_holds_for_all_together(shelf: FolderShelf):
    with serving(shelf, bandwidth_limit_bytes_s=8 << 20) as server, ThreadPoolExecutor() as pool:
        started_s = monotonic()
        asked = [pool.submit(ask, server, f"/v1/blobs/{blob_id()}", node=n) for n in "abcd"]
        assert all(each.result()[2] == DATA for each in asked)
        took_s = monotonic() - started_s
    assert took_s > 4 * len(DATA) / (8 << 20) - 0.5


# Ends


def test_draining_lets_sends_finish_and_begins_none(shelf: FolderShelf):
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf) as server, receiver(server, blob_id(1)) as client:
        until(lambda: bool(server.counters().peers) and server.counters().peers[0].sending == 1)
        server.refuse()
        assert not server.drained(0.01)
        status, _, body = get(server, blob_id(), "bytes=0-9")
        assert status == 503
        assert b"draining" in body
        said = Announcement(OTHER, Member("10.0.0.2", 9871))
        assert ask(server, "/v1/announce", method="POST", body=said.to_json())[0] == 200
        assert read_answer(client) == (200, LARGE_BYTES)
        assert server.drained(10)
        server.resume()
        assert get(server, blob_id(), "bytes=0-9")[0] == 206


def test_closing_leaves_no_threads_and_no_descriptors(shelf: FolderShelf):
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    shelf.coming.add(blob_id(3))
    before = descriptors()
    with (
        serving(shelf, wait_s=3600.0) as server,
        ThreadPoolExecutor() as pool,
        receiver(server, blob_id(1)),
        receiver(server, blob_id(1), "another"),
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        waiting = pool.submit(get, server, blob_id(3), "bytes=0-9", X_Modelcache_Wait="3600")
        until(lambda: server.counters().connections == 4 and shelf.waiting == 1)
        server.close()
        assert waiting.exception() is not None
    assert not [each for each in threading.enumerate() if each.name.startswith("modelcache-peer")]
    assert descriptors() == before
    server.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_port_that_is_taken_is_a_matter_of_configuration(shelf: FolderShelf):
    with (
        serving(shelf) as server,
        pytest.raises(InvalidConfig, match=r"cannot listen on 127\.0\.0\.1.*peers\.listen"),
        serving(shelf, listen=f"127.0.0.1:{server.port}"),
    ):
        pass


def test_ipv6_addresses_are_listened_on(shelf: FolderShelf):
    with serving(shelf, listen="[::1]:0") as server:
        connection = http.client.HTTPConnection("::1", server.port, timeout=10)
        connection.request("HEAD", f"/v1/blobs/{blob_id()}", headers={"X-Modelcache-Node": "n"})
        assert connection.getresponse().status == 200
        connection.close()


def test_a_blob_that_gets_shorter_is_broken_off(shelf: FolderShelf):
    shelf.add(blob_id(1), bytes(LARGE_BYTES))
    with serving(shelf) as server, receiver(server, blob_id(1)) as client:
        until(lambda: bool(server.counters().peers) and server.counters().peers[0].sending == 1)
        os.truncate(shelf.folder / blob_id(1), 1000)
        status, size = read_answer(client)
        assert status == 200
        assert size < LARGE_BYTES
        until(lambda: server.counters().troubles.get("lost", 0) == 1)


def test_idle_connections_are_closed(shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving_module, "IDLE_S", 0.05)
    with serving(shelf) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            assert client.recv(1) == b""
        until(lambda: server.counters().connections == 0)
        assert not server.counters().troubles
