"""Nodes that fetch together: what each takes from whom, and what becomes of trouble."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from modelcache.agent.control import PullControl
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import parse_ref
from modelcache.errors import NotHeld, SourceUnavailable
from modelcache.peers.auth import PeerAuth
from modelcache.peers.shelf import Piece
from modelcache.transfer.shared import REQUEST_UNITS
from tests.agent.support import CHUNK_BYTES, tree
from tests.servers.certificates import Authority
from tests.servers.faults import Fault, Request
from tests.swarm.cell import WAIT_S, CellNode, cell, origin, pull_together

LARGE = 12 * CHUNK_BYTES + 12345
FILES = {"a.safetensors": LARGE, "b.safetensors": LARGE // 2, "config.json": 700}


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that another thread does."""
    deadline_s = monotonic() + WAIT_S
    waiting = threading.Event()
    while not holds():
        assert monotonic() < deadline_s, what
        waiting.wait(0.02)


def test_nodes_that_start_together_read_the_origin_once(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "c", "d") as nodes:
        snapshots = pull_together(nodes, source.index)
        expected = tree(source.folder / "model")
        assert all(tree(each.path) == expected for each in snapshots)
        read = sum(node.came_from()["origin"] for node in nodes)
        assert read <= 1.25 * source.size_bytes, "each chunk once, and the small files"
        assert all(len(node.came_from()) == 4 for node in nodes), "everybody gives to everybody"


def test_one_node_alone_pulls_as_ever(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b") as (one, _):
        one.begin(source.plain)
        assert tree(one.end().path) == tree(source.folder / "model")
        assert list(one.came_from()) == ["origin"]


def test_a_node_that_comes_later_takes_all_from_those_that_have_it(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "c") as (a, b, c):
        pull_together((a, b), source.index)
        before = len(source.proxy.gets(".safetensors") + source.proxy.gets("config.json"))
        c.begin(source.index)
        assert tree(c.end().path) == tree(source.folder / "model")
        assert set(c.came_from()) == {"peer:a", "peer:b"}
        assert len(source.proxy.gets(".safetensors") + source.proxy.gets("config.json")) == before


def test_a_model_arrives_when_the_origin_is_gone_and_peers_have_it(tmp_path: Path) -> None:
    gone = threading.Event()

    def plan(request: Request) -> Fault | None:
        del request
        return Fault(reset_at=0, status=503) if gone.is_set() else None

    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.index)
        a.end()
        gone.set()
        b.begin(source.index)
        assert tree(b.end().path) == tree(source.folder / "model")
        assert set(b.came_from()) == {"peer:a"}


def test_without_any_node_that_has_it_a_dead_origin_is_an_error(tmp_path: Path) -> None:
    dead = Fault(status=503)
    with (
        origin(tmp_path / "o", FILES, lambda _: dead) as source,
        cell(tmp_path, "a", "b", transfer={"retries_max": 1}) as (a, _),
    ):
        a.begin(source.index)
        with pytest.raises(SourceUnavailable):
            a.end()


def held_after(count: int) -> tuple[Callable[[Request], Fault | None], threading.Event]:
    """Answer so many ranges, then hold all others back until the event is set."""
    go = threading.Event()
    lock = threading.Lock()
    left = [count]

    def plan(request: Request) -> Fault | None:
        if request.span is None or go.is_set():
            return None
        with lock:
            left[0] -= 1
            if left[0] >= 0:
                return None
        go.wait(WAIT_S)
        return None

    return plan, go


def test_a_node_that_joins_half_way_does_not_read_again_what_others_have(tmp_path: Path) -> None:
    plan, go = held_after(8)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 8, "half of it is read")
        b.begin(source.index)
        until(lambda: a.swarm.peers() != [] and a.swarm.peers()[0]["fetching"], "b is known")
        go.set()
        a.end()
        b.end()
        assert tree(b.snapshot.path) == tree(source.folder / "model")  # type: ignore[union-attr]
        read = source.chunks_read("a.safetensors") + source.chunks_read("b.safetensors")
        assert len(read) <= 19 + 4, "nineteen chunks, and what was on its way when b came"


def lying(node: CellNode, blob_bytes: int = 0) -> None:
    """Have a node give wrong bytes, with hashes that fit them."""
    door = node.swarm._server._tools.shelf
    real = door.open

    def open_wrong(blob: BlobId, span: ByteRange, **more: Any) -> Piece:
        import xxhash  # noqa: PLC0415

        piece = real(blob, span, **more)
        data = bytearray(os.pread(piece.fd, piece.size_bytes, piece.offset))
        piece.close()
        if len(data) > blob_bytes:
            data[len(data) // 2] ^= 0x40
        fd = os.memfd_create("wrong")
        os.write(fd, data)
        hashes = (xxhash.xxh3_128_digest(bytes(data)),) if piece.hashes else ()
        return Piece(fd, 0, piece.size_bytes, piece.total_bytes, hashes)

    door.open = open_wrong  # type: ignore[method-assign]


def test_a_node_that_gives_wrong_bytes_is_found_and_named_and_left_alone(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "liar") as nodes:
        lying(nodes[2])
        named: list[tuple[NodeId, bool]] = []
        nodes[0].swarm.on_quarantine = lambda node, lied: named.append((node, lied))
        snapshots = pull_together(nodes, source.index)
        assert ("liar", True) in named
        assert all(tree(each.path) == tree(source.folder / "model") for each in snapshots)
        for snapshot in snapshots[:2]:
            assert snapshot.report is not None
            assert "peer:liar gave wrong bytes and is left alone" in snapshot.report.events


def test_a_node_that_has_all_and_lies_is_found_too(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "liar", "b") as (liar, b):
        liar.begin(source.index)
        liar.end()
        lying(liar, 1000)
        b.begin(source.index)
        snapshot = b.end()
        assert tree(snapshot.path) == tree(source.folder / "model")
        assert snapshot.report is not None
        assert "peer:liar gave wrong bytes and is left alone" in snapshot.report.events


def test_bytes_damaged_on_the_way_are_noticed_at_once(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.plain)
        a.end()
        door = a.swarm._server._tools.shelf
        real = door.open
        times = [0]

        def open_damaged(*asked: object, **how: object) -> Piece:
            piece = real(*asked, **how)  # type: ignore[arg-type]
            times[0] += 1
            if times[0] > 2:
                return piece
            data = bytearray(os.pread(piece.fd, piece.size_bytes, piece.offset))
            piece.close()
            data[-1] ^= 1
            fd = os.memfd_create("damaged")
            os.write(fd, data)
            return Piece(fd, 0, piece.size_bytes, piece.total_bytes, piece.hashes)

        door.open = open_damaged  # type: ignore[method-assign]
        b.begin(source.plain)
        snapshot = b.end()
        assert tree(snapshot.path) == tree(source.folder / "model")
        assert snapshot.report is not None
        assert snapshot.report.sources["peer:a"].failures["digest_mismatch"] >= 1


def test_a_node_that_stops_half_way_costs_the_others_no_more_than_its_share(
    tmp_path: Path,
) -> None:
    plan, go = held_after(6)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b", "c") as nodes:
        for node in nodes:
            node.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 6, "some is read")
        nodes[2].swarm._server.close()  # as if it were killed: nothing is said
        nodes[2].cancel.set()
        go.set()
        for node in nodes[:2]:
            assert tree(node.end().path) == tree(source.folder / "model")


def test_a_blob_is_given_only_as_far_as_somebody_vouches_for_it(tmp_path: Path) -> None:
    plan, go = held_after(4)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.index)
        b.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 4, "some is read")

        def relayed(node: CellNode) -> list[tuple[BlobId, int]]:
            return [
                (blob, chunk)
                for sharing in node.swarm._active.all()
                for blob, job in sharing.large.items()
                for chunk in sorted(job.relayed())
            ]

        until(lambda: bool(relayed(a) or relayed(b)), "one has got something from the other")
        for node in (a, b):
            for sharing in node.swarm._active.all():
                for job in sharing.large.values():
                    assert not set(job.holding().listed()) & job.relayed()
        go.set()
        a.end()
        b.end()


def test_a_ref_is_resolved_once_for_all(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "c") as nodes:
        snapshots = pull_together(nodes, source.index)
        assert len({each.model_id for each in snapshots}) == 1
        assert len(source.proxy.gets("index.json")) == 1


def test_a_tag_that_moves_while_nodes_start_means_one_model(tmp_path: Path) -> None:
    versions = iter(range(1, 100))
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "c") as nodes:
        index = source.folder / "index.json"
        text = index.read_text()

        def plan(request: Request) -> Fault | None:
            if request.path.endswith("index.json"):
                moved = text.replace("config.json", f"config-{next(versions)}.json", 1)
                index.write_text(moved)
            return None

        source.proxy.plan = plan
        assert len({each.model_id for each in pull_together(nodes, source.index)}) == 1


def test_what_is_not_here_is_not_given(tmp_path: Path) -> None:
    with cell(tmp_path, "a", "b") as (a, _), pytest.raises(NotHeld):
        a.swarm._shelf.open(BlobId("sha256-" + "0" * 64), ByteRange(0, 1), wait_s=0.0)


def test_a_node_that_leaves_gives_what_only_it_has_first(tmp_path: Path) -> None:
    plan, go = held_after(8)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 8, "half of it is read")
        b.begin(source.index)
        until(lambda: bool(b.swarm._active.all()), "b has begun")
        a.swarm.refuse()
        leaving = threading.Thread(target=a.swarm.hand_over, args=(10.0,))
        leaving.start()
        leaving.join(WAIT_S)
        a.cancel.set()
        go.set()
        snapshot = b.end()
        assert tree(snapshot.path) == tree(source.folder / "model")
        assert b.came_from().get("peer:a", 0) >= 4 * CHUNK_BYTES


def test_a_model_that_only_a_leaving_node_has_is_handed_to_another(tmp_path: Path) -> None:
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b") as (a, b):
        b.begin(source.plain)  # so that they know each other
        b.end()
        handed: list[str] = []

        def keep(ref: str) -> None:
            handed.append(ref)
            b.begin(ref)

        b.swarm.on_handed = keep
        a.begin(source.index)
        a.end()
        a.swarm.refuse()
        assert a.swarm.hand_over(30.0)
        assert handed == [source.index]
        assert tree(b.end().path) == tree(source.folder / "model")


def test_a_node_that_stays_after_all_hands_nothing_over_and_gives_and_fetches(
    tmp_path: Path,
) -> None:
    plan, go = held_after(8)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as (a, b):
        a.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 8, "half of it is read")
        b.begin(source.index)
        until(lambda: bool(b.swarm._active.all()), "b has begun")
        a.swarm.refuse()
        a.swarm.drain()
        handed: list[bool] = []
        leaving = threading.Thread(target=lambda: handed.append(a.swarm.hand_over(3600.0)))
        leaving.start()
        until(lambda: b.swarm.names() == [], "b has heard that a leaves")
        a.swarm.resume()
        leaving.join(WAIT_S)
        assert handed == [False], "it was given up"
        assert b.swarm.names() == ["a"]
        go.set()
        a.end()
        snapshot = b.end()
        assert tree(snapshot.path) == tree(source.folder / "model")
        assert b.came_from().get("peer:a", 0) > 0


def test_when_one_node_is_told_to_wait_all_wait(tmp_path: Path) -> None:
    told = threading.Event()

    def plan(request: Request) -> Fault | None:
        if request.span is not None and not told.is_set():
            told.set()
            return Fault(status=429, headers={"Retry-After": "2"})
        return None

    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a", "b") as nodes:
        for node in nodes:
            node.begin(source.index)
        until(told.is_set, "one was told to wait")
        until(
            lambda: all(node.swarm._budget.told() for node in nodes),
            "and the other has heard of it",
        )
        for node in nodes:
            assert tree(node.end().path) == tree(source.folder / "model")


def test_limits_on_an_origin_are_shared_by_those_who_fetch(tmp_path: Path) -> None:
    plan, go = held_after(0)
    limits = {"origin_connections": 8, "origin_bytes_s": 8 << 30, "origin_requests_s": 800}
    with (
        origin(tmp_path / "o", FILES, plan) as source,
        cell(tmp_path, "a", "b", swarm={**limits, "announce_s": 0.2}) as (a, b),
    ):

        def allowed(node: CellNode) -> tuple[int | None, int, int]:
            (sharing,) = node.swarm._active.all()
            shared = node.engine.shared()
            connections = sharing.transfer._planner._board.origin_connections
            return connections, shared.cluster_pacer.bytes_s, shared.request_pacer.bytes_s

        a.begin(source.index)
        until(lambda: bool(a.swarm._active.all()) and allowed(a)[0] == 8, "a has all of it")
        assert allowed(a) == (8, 8 << 30, 800 * REQUEST_UNITS)
        b.begin(source.index)
        until(lambda: bool(b.swarm._active.all()), "b has begun")
        half = (4, 4 << 30, 400 * REQUEST_UNITS)
        until(lambda: allowed(a) == allowed(b) == half, "each has half of it")
        go.set()
        assert all(tree(n.end().path) == tree(source.folder / "model") for n in (a, b))


def test_nodes_share_over_mutual_tls(tmp_path: Path) -> None:
    certificates = Authority(tmp_path).issue_peer("peer")
    peers = {
        "cert_file": str(certificates.cert_file),
        "key_file": str(certificates.key_file),
        "ca_file": str(certificates.ca_file),
        "server_name": "modelcache-peer",
    }
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", peers=peers) as nodes:
        snapshots = pull_together(nodes, source.index)
        assert all(tree(each.path) == tree(source.folder / "model") for each in snapshots)
        assert all(len(node.came_from()) == 2 for node in nodes)


def test_nodes_share_with_a_token_and_leave_out_who_has_another(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a token of the whole cluster\n")
    (tmp_path / "other").write_text("a token of some other cluster\n")
    peers = {"token_file": str(tmp_path / "token")}
    with (
        origin(tmp_path / "o", FILES) as source,
        cell(tmp_path, "a", "b", "stranger", peers=peers) as nodes,
    ):
        stranger = nodes[2].swarm._auth
        other = PeerAuth.of(
            replace(nodes[2].engine.settings.peers, token_file=str(tmp_path / "other"))
        )
        stranger._tokens = other._tokens
        snapshots = pull_together(nodes, source.index)
        assert all(tree(each.path) == tree(source.folder / "model") for each in snapshots)
        assert set(nodes[0].came_from()) == {"origin", "peer:b"}
        assert set(nodes[1].came_from()) == {"origin", "peer:a"}
        assert set(nodes[2].came_from()) == {"origin"}


def test_two_nodes_of_one_name_say_so_and_fetch_all_the_same(tmp_path: Path) -> None:
    with (
        origin(tmp_path / "o", FILES) as source,
        cell(tmp_path, "a", "b", "a") as (a, b, c),
    ):
        told: list[str] = []
        for node in (a, b, c):
            node.swarm.on_namesake = told.append
        snapshots = pull_together((a, b, c), source.index)
        assert all(tree(each.path) == tree(source.folder / "model") for each in snapshots)
        addresses = {c.swarm.member.address, a.swarm.member.address}
        assert {line.split()[3] for line in told} == addresses, "each is told once of the other"
        assert len(told) == len(addresses)
        assert all("agent.node" in line for line in told)
        assert [node.swarm.warnings() == [] for node in (a, b, c)] == [False, True, False]
        assert a.swarm.counters()["namesakes"] == 1


def test_what_is_more_urgent_gets_the_bandwidth_and_the_rest_goes_on_after(tmp_path: Path) -> None:
    plan, go = held_after(4)
    with origin(tmp_path / "o", FILES, plan) as source, cell(tmp_path, "a") as (a,):
        a.control = PullControl(priority=30)
        a.begin(source.index)
        until(lambda: len(source.chunks_read(".safetensors")) >= 5, "it has begun")
        a.control.set_paused(paused=True)
        go.set()
        held = len(source.chunks_read(".safetensors"))
        other = origin(tmp_path / "urgent", {"u.safetensors": LARGE + 5})
        with other as urgent:
            a.engine.pull(parse_ref(urgent.index))
            assert len(source.chunks_read(".safetensors")) == held, "nothing new was asked for"
        a.control.set_paused(paused=False)
        assert tree(a.end().path) == tree(source.folder / "model")


def test_nodes_that_read_what_arrives_read_the_origin_no_more_often(tmp_path: Path) -> None:
    """Each reads in another order; whatever somebody waits for, its bytes come once."""
    with origin(tmp_path / "o", FILES) as source, cell(tmp_path, "a", "b", "c") as nodes:
        expected = (source.folder / "model" / "a.safetensors").read_bytes()
        wrong: list[str] = []

        def read(node: CellNode, order: list[int]) -> None:
            store = node.engine.store

            def known() -> list[Path]:
                manifests = map(store.layout.manifest, store.model_ids())
                return [path for path in manifests if path.exists()]

            until(lambda: bool(known()), f"{node.name} knows nothing")
            manifest = store.manifest(store.model_ids()[0])
            (file,) = [each for each in manifest.files if each.path == "a.safetensors"]
            buffer = bytearray(1000)
            for chunk in order:
                start = chunk * CHUNK_BYTES
                view = memoryview(buffer)
                node.engine.arriving.wait(file, start, view, timeout_s=WAIT_S)
                if buffer != expected[start : start + 1000]:
                    wrong.append(f"chunk {chunk} on {node.name}")

        orders = (list(range(12)), list(reversed(range(12))), [5, 11, 0, 7, 3, 9])
        readers = [
            threading.Thread(target=read, args=(node, order))
            for node, order in zip(nodes, orders, strict=True)
        ]
        for reader in readers:
            reader.start()
        pull_together(nodes, source.index)
        for reader in readers:
            reader.join(WAIT_S)
            assert not reader.is_alive()
        assert wrong == []
        read_bytes = sum(node.came_from()["origin"] for node in nodes)
        assert read_bytes <= 1.5 * source.size_bytes
