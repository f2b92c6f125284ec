"""What readers of this node wait for goes first, and once more where it would come late."""

from __future__ import annotations

import pytest

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.planner import (
    AttemptEnded,
    AttemptFailed,
    BlobAdded,
    BlobsAdded,
    ChunkStored,
    ChunkWanted,
    Event,
    Failure,
    Fetch,
    Hasten,
    OriginCapped,
    Paused,
    Planner,
    PlannerLimits,
    Remedy,
    SourceId,
    Waiter,
)
from modelcache.planner.readers import EXTRA_CONNECTIONS
from tests.planner.world import World

CHUNK = 16 * MIB
ORIGIN = SourceId("origin")
LIMITS = PlannerLimits(connections_start=4, connections_max=16)
BLOB = BlobId("b")


def blob(name: str, size: int, **more: bool) -> BlobAdded:
    return BlobAdded(BlobId(name), ChunkGrid(size, CHUNK), (ORIGIN,), **more)


class Desk:
    """A planner, told events one by one."""

    def __init__(self, *blobs: BlobAdded, limits: PlannerLimits = LIMITS) -> None:
        self.planner = Planner(limits)
        self.begun = self.tell(BlobsAdded(blobs))

    def tell(self, event: Event, now_s: float = 1.0) -> list[Fetch]:
        return [each for each in self.planner.handle(event, now_s) if isinstance(each, Fetch)]

    def done(self, fetch: Fetch) -> list[Fetch]:
        """All of an attempt comes."""
        found: list[Fetch] = []
        for run in fetch.runs:
            for chunk in range(run.first, run.end):
                found += self.tell(ChunkStored(fetch.attempt, run.blob, chunk))
        return found + self.tell(AttemptEnded(fetch.attempt, 0.01))


def chunks(fetches: list[Fetch]) -> list[tuple[str, int]]:
    return [(run.blob, run.first) for fetch in fetches for run in fetch.runs]


def test_what_a_reader_waits_for_does_not_wait_for_a_free_connection():
    desk = Desk(blob("b", 40 * CHUNK))
    assert len(desk.begun) == 4
    assert chunks(desk.tell(ChunkWanted(BLOB, 30, Waiter.READER))) == [("b", 30)]
    assert desk.tell(ChunkWanted(BLOB, 30, Waiter.READER)) == []


def test_what_a_reader_waits_for_is_let_have_the_link_even_if_it_is_on_its_way():
    desk = Desk(blob("b", 40 * CHUNK))
    (fetch,) = desk.tell(ChunkWanted(BLOB, 30, Waiter.READER))
    assert fetch.urgent
    assert not any(begun.urgent for begun in desk.begun)
    flying = desk.begun[2]
    wanted = ChunkWanted(BLOB, flying.runs[0].first, Waiter.READER)
    assert Hasten(flying.attempt) in desk.planner.handle(wanted, 1.0)
    assert Hasten(flying.attempt) not in desk.planner.handle(wanted, 1.0)
    soon = ChunkWanted(BLOB, desk.begun[3].runs[0].first, Waiter.SOON)
    assert not any(isinstance(action, Hasten) for action in desk.planner.handle(soon, 1.0))


def test_readers_take_only_a_few_connections_more_and_then_the_next_free_one():
    desk = Desk(blob("b", 60 * CHUNK))
    asked = [desk.tell(ChunkWanted(BLOB, 30 + n, Waiter.READER)) for n in range(10)]
    assert sum(map(len, asked)) == EXTRA_CONNECTIONS
    assert chunks(desk.done(desk.begun[0])) == [("b", 30 + EXTRA_CONNECTIONS)]


def test_no_reader_breaks_the_limit_of_all_connections():
    limits = PlannerLimits(connections_start=2, connections_max=2)
    desk = Desk(blob("b", 40 * CHUNK), limits=limits)
    assert desk.tell(ChunkWanted(BLOB, 30, Waiter.READER)) == []
    assert chunks(desk.done(desk.begun[0])) == [("b", 30)]


def test_what_is_read_soon_is_the_next_of_all_but_takes_no_connection_more():
    desk = Desk(blob("b", 40 * CHUNK), blob("other", 50 * CHUNK))
    assert desk.tell(ChunkWanted(BLOB, 20, Waiter.SOON)) == []
    assert chunks(desk.done(desk.begun[0])) == [("b", 20)]
    assert chunks(desk.done(desk.begun[1]))[0][0] == "other"


def test_a_small_file_that_is_read_does_not_wait_for_its_batch():
    many = [blob(f"s{number}", 1000) for number in range(4000)]
    desk = Desk(blob("b", 40 * CHUNK), *many)
    last = BlobId("s3999")
    (fetch,) = desk.tell(ChunkWanted(last, 0, Waiter.READER))
    assert [(run.blob, run.count) for run in fetch.runs] == [("s3999", 1)]
    assert fetch.lanes == 1


def test_a_chunk_behind_others_of_its_request_is_asked_for_once_more_and_not_twice():
    world = World(LIMITS, chunk_s=1.0, first_byte_s=2.0)
    world.blobs[BLOB] = blob("b", 400 * CHUNK)
    world.stored[BLOB] = set()
    world.feed(BlobsAdded((world.blobs[BLOB],)))
    while not any(fetch.runs[0].count > 2 for fetch in world.fetches):
        assert world.step()
    run = next(fetch for fetch in world.fetches if fetch.runs[0].count > 2).runs[0]
    world.feed(ChunkWanted(BLOB, run.end - 1, Waiter.READER))
    world.feed(ChunkWanted(BLOB, run.end - 1, Waiter.READER))
    again = [fetch for fetch in world.fetches if fetch.hedge]
    assert chunks(again) == [("b", run.end - 1)]
    while world.step():
        pass
    assert world.finished == [BLOB]


def test_a_chunk_whose_attempt_failed_is_urgent_still():
    desk = Desk(blob("b", 40 * CHUNK))
    (fetch,) = desk.tell(ChunkWanted(BLOB, 30, Waiter.READER))
    again = desk.tell(AttemptFailed(fetch.attempt, Failure(Remedy.RENEW, "credentials_expired")))
    assert ("b", 30) in chunks(again)


def test_readers_are_served_while_a_transfer_pauses_and_what_they_read_next_is_not():
    desk = Desk(blob("b", 40 * CHUNK))
    desk.tell(Paused(True))
    assert desk.tell(ChunkWanted(BLOB, 20, Waiter.SOON)) == []
    assert chunks(desk.tell(ChunkWanted(BLOB, 30, Waiter.READER))) == [("b", 30)]
    assert desk.done(desk.begun[0]) == []


def test_a_limit_of_all_nodes_together_holds_for_readers_too():
    desk = Desk(blob("b", 40 * CHUNK))
    desk.tell(OriginCapped(4))
    assert desk.tell(ChunkWanted(BLOB, 30, Waiter.READER)) == []
    desk.tell(OriginCapped(5))
    assert chunks(desk.tell(ChunkWanted(BLOB, 31, Waiter.READER))) == []
    assert chunks(desk.done(desk.begun[0]))[0] == ("b", 30)


def test_a_stream_without_ranges_begins_with_all_of_it():
    desk = Desk(blob("a", 400 * CHUNK), blob("b", 3 * CHUNK, ranges=False))
    (fetch,) = desk.tell(ChunkWanted(BLOB, 2, Waiter.READER))
    assert [(run.first, run.count) for run in fetch.runs] == [(0, 3)]


@pytest.mark.parametrize("chunk", [-1, 40, 1 << 40])
def test_a_chunk_that_is_not_there_is_not_asked_for(chunk: int):
    desk = Desk(blob("b", 40 * CHUNK))
    assert desk.tell(ChunkWanted(BLOB, chunk, Waiter.READER)) == []
    assert desk.tell(ChunkWanted(BlobId("unknown"), 0, Waiter.READER)) == []
