"""How a node reads a seed: less ahead of others, more behind them, and for them when it is done."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from modelcache.planner import Action, Announce, ChunkWanted, Fetch, TimerDue
from tests.planner.test_swarm import ANN, BLOB, BOB, CY, LIMITS, ME, ORIGIN, Desk, owned

CHUNK_S = 2.0  # so long that connections count as sharing a link


@dataclass(frozen=True, slots=True)
class Pace:
    """Chunks that a peer has read when this node has read twelve, and what it reads on then."""

    theirs: int
    connections: int


def from_origin(desk: Desk) -> list[Fetch]:
    return [fetch for fetch in desk.open.values() if fetch.source == ORIGIN]


def read(desk: Desk, count: int) -> None:
    """So many chunks come from the origin, one after the other."""
    for _ in range(count):
        desk.now_s += CHUNK_S
        desk.deliver(from_origin(desk)[0])


def tell_all(desk: Desk, count: int, *, leaving: int = 0) -> None:
    """Every peer has read so many chunks of its share, but not the last ones."""
    shares = owned(desk, ME, ANN, BOB, CY)
    for node in (ANN, BOB, CY):
        desk.tell(desk.fetching(node, *shares[node][: min(count, len(shares[node]) - leaving)]))


def desk_with_twelve_read() -> Desk:
    desk = Desk(160)
    desk.start(*(desk.fetching(node) for node in (ANN, BOB, CY)))
    for count in range(12):
        read(desk, 1)
        tell_all(desk, count + 1)
    return desk


def test_before_anything_is_read_one_chunk_is() -> None:
    desk = Desk(160)
    desk.start(*(desk.fetching(node) for node in (ANN, BOB, CY)))
    assert len(from_origin(desk)) == 1
    read(desk, 1)
    assert len(from_origin(desk)) == LIMITS.seed_connections_min


@pytest.mark.parametrize("pace", [Pace(1, 0), Pace(9, 1), Pace(13, 2), Pace(18, 4)], ids=str)
def test_a_node_reads_less_ahead_of_others_and_more_behind_them(pace: Pace) -> None:
    desk = Desk(160)
    desk.start(*(desk.fetching(node) for node in (ANN, BOB, CY)))
    tell_all(desk, 0)
    read(desk, 11)
    tell_all(desk, pace.theirs)
    desk.now_s += 1
    desk.deliver(from_origin(desk)[0])
    for fetch in from_origin(desk)[pace.connections :]:  # begun before it was known
        desk.deliver(fetch)
    assert len(from_origin(desk)) <= max(pace.connections, 1)
    desk.tell(TimerDue())
    assert len(from_origin(desk)) == pace.connections


def test_what_a_peer_waits_for_is_not_read_by_who_is_far_ahead() -> None:
    desk = Desk(160)
    desk.start(*(desk.fetching(node) for node in (ANN, BOB, CY)))
    tell_all(desk, 0)
    read(desk, 12)
    tell_all(desk, 1)
    desk.now_s += 1
    while from_origin(desk):
        desk.deliver(from_origin(desk)[0])
    wanted = owned(desk, ME, ANN, BOB, CY)[ME][-1]
    desk.tell(ChunkWanted(BLOB, wanted))
    assert not from_origin(desk)
    tell_all(desk, 11)
    desk.now_s += 1
    desk.tell(TimerDue())
    assert [fetch.runs[0].first for fetch in from_origin(desk)][:1] == [wanted]


def test_nobody_waits_for_nodes_that_read_nothing() -> None:
    desk = Desk(160)
    desk.start(*(desk.fetching(node) for node in (ANN, BOB, CY)))
    tell_all(desk, 0)
    read(desk, 12)
    tell_all(desk, 0)
    desk.now_s += 30
    tell_all(desk, 0)
    read(desk, 3)
    assert from_origin(desk)


def is_one(action: Action, chunks: list[int]) -> bool:
    return isinstance(action, Fetch) and action.runs[0].first in chunks


def desk_with_all_of_its_share_read(*, leaving: int) -> Desk:
    """Peers have read as much, but for their last ones; all at one chunk in `CHUNK_S`."""
    desk = desk_with_twelve_read()
    for count in range(12, len(owned(desk, ME, ANN, BOB, CY)[ME])):
        read(desk, 1)
        tell_all(desk, count, leaving=leaving)
        for fetch in [fetch for fetch in desk.open.values() if fetch.source != ORIGIN][:2]:
            desk.deliver(fetch)  # so nobody is a straggler
    return desk


def test_who_is_done_reads_an_eighth_more_and_says_so() -> None:
    desk = desk_with_all_of_its_share_read(leaving=20)
    mine = set(owned(desk, ME, ANN, BOB, CY)[ME])
    for _ in range(8):
        desk.now_s += 1
        desk.tell(TimerDue())
        if from_origin(desk):
            read(desk, 1)
    asked = [fetch.runs[0].first for fetch in desk.fetches() if fetch.source == ORIGIN]
    taken = [chunk for chunk in asked if chunk not in mine]
    first = next(place for place, action in enumerate(desk.actions) if is_one(action, taken))
    assert any(isinstance(action, Announce) for action in desk.actions[first:])
    assert taken
    assert len(taken) <= len(mine) * LIMITS.take_over_share


@pytest.mark.parametrize(("quiet_s", "takes"), [(CHUNK_S, True), (7 * CHUNK_S, False)])
def test_what_peers_may_have_begun_since_they_last_spoke_is_left_to_them(
    quiet_s: float, takes: bool
) -> None:
    desk = desk_with_all_of_its_share_read(leaving=5)
    while from_origin(desk):
        desk.deliver(from_origin(desk)[0])
    tell_all(desk, 200, leaving=5)
    desk.now_s += quiet_s
    desk.tell(TimerDue())
    assert bool(from_origin(desk)) is takes
