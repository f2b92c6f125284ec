"""Rendezvous hashing: even shares, and little that moves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.holdings import Holding, HoldingState, bitmap
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.domain.ring import NOBODY, Ring, first_of

BLOB = BlobId("sha256-" + "1" * 64)
NODES = [f"node-{number}" for number in range(12)]


def owners(ring: Ring, count: int) -> list[str]:
    return [ring.owner(chunk) for chunk in range(count)]


def test_an_empty_ring_has_no_owners() -> None:
    assert Ring(BLOB, 1).owner(0) == NOBODY


def test_nobody_owns_two_chunks_more_than_another() -> None:
    for count in (7, 8, 100, 803):
        ring = Ring(BLOB, count)
        for node in NODES[:8]:
            ring.add(node)
        shares = Counter(owners(ring, count))
        assert max(shares.values()) == -(-count // 8)
        assert min(shares.values()) == count // 8 or len(shares) == count


def test_who_owns_one_chunk_more_differs_from_blob_to_blob() -> None:
    more: Counter[str] = Counter()
    for number in range(200):
        ring = Ring(BlobId(f"sha256-{number:064x}"), 9)
        for node in NODES[:8]:
            ring.add(node)
        more.update(node for node, count in Counter(owners(ring, 9)).items() if count == 2)
    assert sum(more.values()) == 200
    assert max(more.values()) < 50


def test_a_node_more_takes_its_share_and_moves_little_else() -> None:
    ring = Ring(BLOB, 4000)
    for node in NODES[:9]:
        ring.add(node)
    moved = ring.add(NODES[9])
    assert 400 <= len(moved) < 700


@given(steps=st.lists(st.tuples(st.booleans(), st.sampled_from(NODES)), max_size=30))
def test_owners_depend_on_who_is_there_and_not_on_how_they_came(
    steps: list[tuple[bool, str]],
) -> None:
    ring = Ring(BLOB, 50)
    there: set[str] = set()
    for comes, node in steps:
        before = owners(ring, 50)
        moved = ring.add(node) if comes else ring.remove(node)
        there = there | {node} if comes else there - {node}
        after = owners(ring, 50)
        assert [chunk for chunk in range(50) if before[chunk] != after[chunk]] == sorted(moved)
    fresh = Ring(BLOB, 50)
    for node in sorted(there):
        fresh.add(node)
    assert owners(fresh, 50) == owners(ring, 50)


def test_who_is_first_for_a_name_is_the_same_everywhere() -> None:
    assert first_of("s3://a/b", NODES) == first_of("s3://a/b", reversed(NODES))
    assert len({first_of(f"s3://bucket/{n}", NODES)[0] for n in range(200)}) == len(NODES)


@given(count=st.integers(0, 70), data=st.data())
def test_bitmaps_say_which_chunks_there_are(count: int, data: st.DataObject) -> None:
    chunks = data.draw(st.sets(st.integers(0, max(0, count - 1)), max_size=count))
    held = Holding(BLOB, HoldingState.FETCHING, ChunkGrid(count, 1), bitmap(chunks, count))
    assert held.listed() == sorted(chunks)
    assert [chunk for chunk in range(count + 9) if held.has(chunk)] == sorted(chunks)


def test_who_has_all_has_each_and_who_has_nothing_none() -> None:
    grid = ChunkGrid(3, 1)
    assert Holding(BLOB, HoldingState.COMPLETE, grid).has(2)
    assert not Holding(BLOB, HoldingState.NONE, grid, b"\xff").has(2)


def test_bits_beyond_the_last_chunk_mean_nothing() -> None:
    held = Holding(BLOB, HoldingState.FETCHING, ChunkGrid(3, 1), b"\xff")
    assert held.listed() == [0, 1, 2]
