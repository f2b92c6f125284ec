"""What the planner decides about peers, each decision by name."""

from __future__ import annotations

import pytest

from modelcache.domain.holdings import Holding, HoldingState, bitmap
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.domain.ring import Ring
from modelcache.planner import (
    Action,
    Announce,
    AttemptEnded,
    AttemptFailed,
    BlobAdded,
    BlobsAdded,
    Cancel,
    ChunkAudited,
    ChunkStored,
    ChunkWanted,
    Curtail,
    Doubted,
    Event,
    Failure,
    Fetch,
    Finish,
    Forget,
    OriginCapped,
    Paused,
    PeerLeft,
    PeerTold,
    Planner,
    PlannerLimits,
    Quarantine,
    Remedy,
    SourceId,
    TimerDue,
    Waiter,
    Wake,
    peer_source,
)

CHUNK = 16 * MIB
ORIGIN = SourceId("origin")
ME, ANN, BOB, CY = (NodeId(name) for name in ("me", "ann", "bob", "cy"))
BLOB = BlobId("sha256-" + "0" * 64)
LIMITS = PlannerLimits(connections_start=4, connections_max=32, gathering_s=0.0)


class Desk:
    """A planner, and attempts that end when the test says so."""

    def __init__(self, count: int = 40, **more: bool) -> None:
        self.grid = ChunkGrid(count * CHUNK, CHUNK)
        self.planner = Planner(LIMITS, ME)
        self.now_s = 0.0
        self.actions: list[Action] = []
        self.open: dict[int, Fetch] = {}
        self.more = more

    def start(self, *told: PeerTold) -> None:
        self.tell(Paused(True))
        self.tell(BlobsAdded((BlobAdded(BLOB, self.grid, (ORIGIN,), **self.more),)))
        for each in told:
            self.tell(each)
        self.tell(Paused(False))

    def tell(self, event: Event) -> list[Action]:
        found = self.planner.handle(event, self.now_s)
        self.actions += found
        for action in found:
            if isinstance(action, Fetch):
                self.open[action.attempt] = action
        return found

    def holding(self, node: NodeId, state: HoldingState, chunks: tuple[int, ...] = ()) -> PeerTold:
        bits = bitmap(chunks, self.grid.count) if state is HoldingState.FETCHING else b""
        return PeerTold(peer_source(node), Holding(BLOB, state, self.grid, bits))

    def fetching(self, node: NodeId, *chunks: int) -> PeerTold:
        return self.holding(node, HoldingState.FETCHING, chunks)

    def complete(self, node: NodeId) -> PeerTold:
        return self.holding(node, HoldingState.COMPLETE)

    def deliver(self, fetch: Fetch) -> list[Action]:
        """One attempt brings all it was asked for."""
        del self.open[fetch.attempt]
        self.now_s += 0.1
        found = []
        for run in fetch.runs:
            for chunk in range(run.first, run.end):
                found += self.tell(ChunkStored(fetch.attempt, run.blob, chunk))
        return found + self.tell(AttemptEnded(fetch.attempt, 0.01))

    def fail(self, fetch: Fetch, remedy: Remedy, code: str = "reset") -> list[Action]:
        del self.open[fetch.attempt]
        return self.tell(AttemptFailed(fetch.attempt, Failure(remedy, code), BLOB))

    def run(self) -> dict[SourceId, list[int]]:
        """Everything is delivered; which chunk came from where."""
        came: dict[SourceId, list[int]] = {}
        while self.open:
            fetch = self.open[min(self.open)]
            for run in fetch.runs:
                came.setdefault(fetch.source, []).extend(range(run.first, run.end))
            self.deliver(fetch)
        return came

    def run_all_but_audits(self) -> None:
        """Everything else is delivered."""
        while others := [fetch for fetch in self.open.values() if not fetch.audit]:
            self.deliver(others[0])

    def fetches(self) -> list[Fetch]:
        return [action for action in self.actions if isinstance(action, Fetch)]


def owned(desk: Desk, *nodes: NodeId) -> dict[str, list[int]]:
    ring = Ring(BLOB, desk.grid.count)
    for node in nodes:
        ring.add(node)
    found: dict[str, list[int]] = {node: [] for node in nodes}
    for chunk in range(desk.grid.count):
        found[ring.owner(chunk)].append(chunk)
    return found


def test_each_fetching_node_is_asked_for_its_share_and_the_origin_for_mine() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    shares = owned(desk, ME, ANN, BOB)
    came = desk.run()
    assert sorted(came[ORIGIN]) == shares[ME]
    assert sorted(came[peer_source(ANN)]) == shares[ANN]
    assert sorted(came[peer_source(BOB)]) == shares[BOB]
    assert Finish(BLOB) in desk.actions


def test_without_peers_all_comes_from_the_origin() -> None:
    desk = Desk()
    desk.start()
    assert list(desk.run()) == [ORIGIN]


def test_a_node_that_has_the_blob_is_the_seed_instead_of_the_origin() -> None:
    desk = Desk()
    desk.start(desk.complete(ANN), desk.fetching(BOB), desk.fetching(CY))
    came = desk.run()
    assert ORIGIN not in came
    assert sorted(came[peer_source(ANN)]) == owned(desk, ME, BOB, CY)[ME]


def test_as_many_nodes_that_have_the_blob_as_want_it_are_asked_directly() -> None:
    desk = Desk()
    desk.start(desk.complete(ANN), desk.complete(CY), desk.fetching(BOB))
    came = desk.run()
    assert set(came) == {peer_source(ANN), peer_source(CY)}
    assert all(len(chunks) > 10 for chunks in came.values()), "spread over both"


def test_only_what_somebody_vouches_for_may_be_passed_on() -> None:
    desk = Desk()
    desk.start(desk.fetching(BOB), desk.fetching(CY))
    desk.run()
    assert all(fetch.serve == (fetch.source == ORIGIN) for fetch in desk.fetches())
    desk = Desk()
    desk.start(desk.complete(ANN), desk.fetching(BOB), desk.fetching(CY))
    desk.run()
    assert all(fetch.serve == (fetch.source == peer_source(ANN)) for fetch in desk.fetches())


def test_a_chunk_that_another_has_already_is_not_read_again() -> None:
    desk = Desk()
    mine = owned(desk, ME, ANN)[ME]
    desk.start(desk.fetching(ANN, *mine[:3]))
    came = desk.run()
    assert set(mine[:3]) <= set(came[peer_source(ANN)])
    assert not set(came[ORIGIN]) & set(mine[:3])


def test_who_leaves_is_not_asked_and_its_share_is_divided() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    desk.tell(PeerLeft(peer_source(ANN)))
    for fetch in [fetch for fetch in desk.open.values() if fetch.source == peer_source(ANN)]:
        desk.fail(fetch, Remedy.RETRY)
    before = len(desk.fetches())
    came = desk.run()
    assert peer_source(ANN) not in {fetch.source for fetch in desk.fetches()[before:]}
    shares = owned(desk, ME, BOB)
    assert sorted(came[ORIGIN]) == shares[ME]


def test_two_failures_in_a_row_put_a_peer_in_quarantine() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN))
    ann = [fetch for fetch in desk.open.values() if fetch.source == peer_source(ANN)]
    assert not [a for a in desk.fail(ann[0], Remedy.RETRY) if isinstance(a, Quarantine)]
    quarantines = [a for a in desk.fail(ann[1], Remedy.RETRY) if isinstance(a, Quarantine)]
    assert [(q.source, q.lied) for q in quarantines] == [(peer_source(ANN), False)]
    desk.tell(desk.fetching(ANN))
    later = [f for f in desk.open.values() if f.source == peer_source(ANN)]
    assert all(fetch.attempt < max(ann[1].attempt + 2, 0) for fetch in later), "not asked again"
    assert set(desk.run()) <= {ORIGIN, peer_source(ANN)}
    assert Finish(BLOB) in desk.actions


def test_a_peer_in_quarantine_is_asked_again_when_its_time_is_over() -> None:
    desk = Desk(400)
    desk.start(desk.fetching(ANN))
    while asked := [f for f in desk.open.values() if f.source == peer_source(ANN)]:
        desk.fail(asked[0], Remedy.RETRY)
    desk.now_s += LIMITS.quarantine_first_s + 0.1
    desk.tell(desk.fetching(ANN))
    assert peer_source(ANN) in {f.source for f in desk.open.values()}


def test_not_yet_is_nobodys_fault() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN))
    for _ in range(50):
        asked = [f for f in desk.open.values() if f.source == peer_source(ANN)]
        for fetch in asked:
            desk.fail(fetch, Remedy.NOT_YET, "not_yet")
        desk.now_s += 1.0
        desk.tell(Paused(False))
    assert not [a for a in desk.actions if isinstance(a, Quarantine)]
    desk.run()
    assert Finish(BLOB) in desk.actions


def test_who_does_not_have_the_blob_is_not_asked_for_more_of_it() -> None:
    desk = Desk()
    desk.start(desk.complete(ANN))
    first = next(iter(desk.open.values()))
    desk.fail(first, Remedy.REFUSED, "not_held")
    while any(f.source == peer_source(ANN) for f in desk.open.values()):
        asked = next(f for f in desk.open.values() if f.source == peer_source(ANN))
        desk.fail(asked, Remedy.REFUSED, "not_held")
    assert set(desk.run()) == {ORIGIN}
    assert not [a for a in desk.actions if isinstance(a, Quarantine)]


def test_who_fails_is_not_asked_for_what_it_had_before_it_had_everything() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN, *range(20)), desk.fetching(BOB))
    desk.tell(desk.complete(ANN))
    for _ in range(2):
        asked = next(f for f in desk.open.values() if f.source == peer_source(ANN))
        desk.fail(asked, Remedy.RETRY)
    before = len(desk.fetches())
    desk.run()
    assert Finish(BLOB) in desk.actions
    assert peer_source(ANN) not in {fetch.source for fetch in desk.fetches()[before:]}


def test_what_a_peer_waits_for_goes_first_and_while_all_else_is_paused() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN))
    desk.tell(Paused(True))
    while desk.open:
        desk.deliver(desk.open[min(desk.open)])
    before = len(desk.fetches())
    last = owned(desk, ME, ANN)[ME][-1]
    desk.tell(ChunkWanted(BLOB, last))
    (asked,) = desk.fetches()[before:]
    assert (asked.source, asked.runs[0].first) == (ORIGIN, last)


def test_nothing_is_asked_for_before_it_is_known_who_has_what() -> None:
    desk = Desk()
    desk.tell(Paused(True, fully=True))
    desk.tell(BlobsAdded((BlobAdded(BLOB, desk.grid, (ORIGIN,)),)))
    desk.tell(ChunkWanted(BLOB, 3))
    assert not desk.fetches()
    desk.tell(desk.complete(ANN))
    desk.tell(desk.fetching(BOB))
    desk.tell(Paused(False))
    assert desk.fetches()[0].runs[0].first == 3
    assert ORIGIN not in desk.run()


def test_a_chunk_that_is_expected_from_here_is_mine_whatever_the_ring_says() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN))
    anns = owned(desk, ME, ANN)[ANN][-1]
    desk.tell(ChunkWanted(BLOB, anns))
    assert anns in desk.run()[ORIGIN]


def test_paused_transfers_end_after_the_chunk_at_hand() -> None:
    desk = Desk(400)
    desk.start()
    slow = PlannerLimits(connections_start=1, connections_max=4)
    planner = Planner(slow)
    planner.handle(BlobsAdded((BlobAdded(BLOB, desk.grid, (ORIGIN,)),)), 0.0)
    now_s = 0.0
    attempt = 0
    longest = 1
    for _ in range(40):  # first bytes that take long make requests longer
        now_s += 0.2
        actions = planner.handle(ChunkStored(attempt, BLOB, attempt), now_s)
        actions += planner.handle(AttemptEnded(attempt, 5.0), now_s)
        fetches = [action for action in actions if isinstance(action, Fetch)]
        longest = max(longest, *(fetch.runs[0].count for fetch in fetches), 1)
        if longest > 1:
            break
        attempt = fetches[0].attempt
    assert longest > 1
    assert any(isinstance(action, Curtail) for action in planner.handle(Paused(True), now_s))


def test_a_cap_on_origins_holds_for_all_of_them() -> None:
    desk = Desk()
    desk.tell(OriginCapped(1))
    desk.start()
    assert len(desk.open) == 1
    desk.tell(OriginCapped(None))
    assert len(desk.open) > 1


def test_origins_rest_until_the_moment_that_was_told() -> None:
    desk = Desk()
    desk.tell(OriginCapped(None, until_s=5.0))
    desk.start()
    assert not desk.open
    desk.now_s = 5.0
    desk.tell(Paused(False))
    assert desk.open


def audit_of(desk: Desk) -> list[Fetch]:
    return [fetch for fetch in desk.open.values() if fetch.audit]


def test_a_liar_is_found_by_audits_and_only_what_it_gave_comes_anew() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    came = desk.run()
    lie = set(came[peer_source(ANN)])
    desk.tell(Doubted(BLOB))
    while audits := audit_of(desk):
        fetch = audits[0]
        del desk.open[fetch.attempt]
        chunk = fetch.runs[0].first
        assert fetch.source == ORIGIN
        desk.tell(ChunkAudited(fetch.attempt, BLOB, chunk, chunk not in lie))
        desk.tell(AttemptEnded(fetch.attempt, 0.01))
    (quarantine,) = [a for a in desk.actions if isinstance(a, Quarantine)]
    assert (quarantine.source, quarantine.lied) == (peer_source(ANN), True)
    (forget,) = [a for a in desk.actions if isinstance(a, Forget)]
    assert len(forget.chunks) == len(lie) - 1
    again = desk.run()
    assert peer_source(ANN) not in again
    assert {chunk for chunks in again.values() for chunk in chunks} == set(forget.chunks)
    assert desk.actions.count(Finish(BLOB)) == 2


def test_a_blob_is_not_looked_at_as_a_whole_while_an_audit_may_change_it() -> None:
    """What the liar gave is here again before the last audit has come to its end."""
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    lie = set(desk.run()[peer_source(ANN)])
    desk.tell(Doubted(BLOB))
    desk.tell(desk.complete(BOB))
    audits = audit_of(desk)
    first = next(fetch for fetch in audits if fetch.runs[0].first in lie)
    del desk.open[first.attempt]
    desk.tell(ChunkAudited(first.attempt, BLOB, first.runs[0].first, same=False))
    desk.tell(AttemptEnded(first.attempt, 0.01))
    desk.run_all_but_audits()
    assert desk.actions.count(Finish(BLOB)) == 1
    while audits := audit_of(desk):
        fetch = audits[0]
        del desk.open[fetch.attempt]
        chunk = fetch.runs[0].first
        desk.tell(ChunkAudited(fetch.attempt, BLOB, chunk, chunk not in lie))
        desk.tell(AttemptEnded(fetch.attempt, 0.01))
    assert desk.actions.count(Finish(BLOB)) == 2


def compare_all(desk: Desk, *, lie: set[int], liar: NodeId) -> list[Fetch]:
    """Every audit ends: `lie` is wrong here, and `liar`, if asked, says what nobody else does."""
    ended = []
    while audits := audit_of(desk):
        fetch = audits[0]
        del desk.open[fetch.attempt]
        chunk = fetch.runs[0].first
        same = chunk not in lie and fetch.source != peer_source(liar)
        desk.tell(ChunkAudited(fetch.attempt, BLOB, chunk, same))
        desk.tell(AttemptEnded(fetch.attempt, 0.01))
        ended.append(fetch)
    return ended


def test_chunks_are_compared_with_a_verified_node_and_the_origin_decides_what_differs() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB), desk.fetching(CY))
    lie = set(desk.run()[peer_source(ANN)][:2])
    desk.tell(desk.complete(CY))
    desk.tell(Doubted(BLOB))
    ended = compare_all(desk, lie=lie, liar=ANN)
    read = [fetch.runs[0].first for fetch in ended if fetch.source == ORIGIN]
    compared = {fetch.runs[0].first for fetch in ended if fetch.source == peer_source(CY)}
    assert set(read) <= lie, "the origin is asked for nothing else"
    assert compared & lie
    assert all(fetch.serve == (fetch.source == ORIGIN) for fetch in ended)
    (quarantine,) = [a for a in desk.actions if isinstance(a, Quarantine)]
    assert (quarantine.source, quarantine.lied) == (peer_source(ANN), True)


def test_who_compares_falsely_is_the_liar() -> None:
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB), desk.fetching(CY))
    desk.run()
    desk.tell(desk.complete(CY))
    desk.tell(Doubted(BLOB))
    compare_all(desk, lie=set(), liar=CY)
    assert [a.source for a in desk.actions if isinstance(a, Quarantine)] == [peer_source(CY)]


def test_where_all_that_is_compared_is_the_same_the_origin_is_read() -> None:
    """A liar that says it has verified the blob says the same twice."""
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    came = desk.run()
    desk.tell(desk.complete(CY))
    rounds = []
    for _ in range(3):
        desk.tell(Doubted(BLOB))
        rounds.append({fetch.source for fetch in compare_all(desk, lie=set(), liar=BOB)})
        if rounds[-1] == {ORIGIN}:
            break
    assert rounds[0] == {peer_source(CY)}
    assert rounds[-1] == {ORIGIN}
    assert came


def test_an_audit_that_a_peer_cannot_answer_is_made_at_the_origin() -> None:
    desk = Desk(8)
    desk.start(desk.fetching(ANN))
    desk.run()
    desk.tell(desk.complete(CY))
    desk.tell(Doubted(BLOB))
    for fetch in audit_of(desk):
        del desk.open[fetch.attempt]
        desk.tell(AttemptFailed(fetch.attempt, Failure(Remedy.REFUSED, "not_held"), BLOB))
    assert {fetch.source for fetch in audit_of(desk)} == {ORIGIN}


@pytest.mark.parametrize("ends", ["ended", "failed"])
def test_an_audit_that_nobody_needs_any_more_does_not_hold_the_blob_up(ends: str) -> None:
    """It was for a peer who waited for a chunk of ours."""
    desk = Desk()
    desk.start(desk.fetching(ANN))
    given = next(f for f in desk.open.values() if f.source == peer_source(ANN))
    chunk = given.runs[0].first
    for _ in range(desk.grid.count - 1):
        desk.deliver(desk.open[min(desk.open)])
    desk.tell(ChunkWanted(BLOB, chunk))
    desk.run_all_but_audits()
    (audit,) = audit_of(desk)
    assert Cancel(audit.attempt) in desk.actions
    assert Finish(BLOB) not in desk.actions
    if ends == "ended":
        desk.tell(AttemptEnded(audit.attempt, 0.01))
    else:
        desk.fail(audit, Remedy.CANCELLED, "cancelled")
    assert desk.actions.count(Finish(BLOB)) == 1
    desk.tell(ChunkWanted(BLOB, chunk))
    assert [f for f in desk.open.values() if f.audit] in ([], [audit])


def test_one_wrong_chunk_of_many_is_found_in_a_few_rounds() -> None:
    desk = Desk(64)
    desk.start(desk.fetching(ANN))
    wrong = desk.run()[peer_source(ANN)][-1]
    audited = 0
    for _ in range(10):
        desk.tell(Doubted(BLOB))
        while audits := audit_of(desk):
            fetch = audits[0]
            del desk.open[fetch.attempt]
            audited += 1
            same = fetch.runs[0].first != wrong
            desk.tell(ChunkAudited(fetch.attempt, BLOB, fetch.runs[0].first, same))
            desk.tell(AttemptEnded(fetch.attempt, 0.01))
        if [a for a in desk.actions if isinstance(a, Quarantine)]:
            break
    assert [a for a in desk.actions if isinstance(a, Quarantine)]
    desk.run()


def test_when_no_peer_has_lied_the_origin_is_to_blame() -> None:
    desk = Desk(4)
    desk.start()
    desk.run()
    desk.tell(Doubted(BLOB))
    assert Forget(BLOB) in desk.actions
    assert len({c for f in desk.open.values() for r in f.runs for c in range(r.first, r.end)}) == 4


def test_who_is_done_takes_over_what_a_slow_peer_has_not_read_and_tells() -> None:
    desk = Desk(120)
    desk.start(desk.fetching(ANN), desk.fetching(BOB), desk.fetching(CY))
    slow = peer_source(ANN)
    for _ in range(200):
        quick = [f for f in desk.open.values() if f.source != slow]
        if not quick:
            break
        desk.deliver(quick[0])
    desk.now_s += 5.0
    desk.tell(Paused(False))
    anns = set(owned(desk, ME, ANN, BOB, CY)[ANN])
    read = {fetch.runs[0].first for fetch in desk.fetches() if fetch.source == ORIGIN}
    assert read & anns, "something was taken over"
    assert read & anns <= set(owned(desk, ME, BOB, CY)[ME]), "and nobody else takes that"
    assert Announce() in desk.actions
    desk.run()
    assert Finish(BLOB) in desk.actions


def slow_peer(desk: Desk, *, gives: int = 0) -> SourceId:
    """Of ANN's chunks only the first `gives` come, and all that others owe; some time passes."""
    anns = owned(desk, ME, ANN, BOB, CY)[ANN]
    desk.start(desk.fetching(ANN, *anns), desk.fetching(BOB), desk.fetching(CY))
    slow = peer_source(ANN)
    while others := [f for f in desk.open.values() if f.source != slow or gives > 0]:
        fetch = next((f for f in others if f.source == slow), others[0])
        gives -= fetch.source == slow
        desk.deliver(fetch)
    desk.now_s += LIMITS.steal_after_s
    desk.tell(Paused(False))
    return slow


def test_a_peer_that_gives_a_fraction_of_what_others_do_is_asked_for_nothing_more() -> None:
    desk = Desk(120)
    slow = slow_peer(desk)
    stuck = [fetch for fetch in desk.open.values() if fetch.source == slow]
    assert stuck, "it was asked"
    assert {Cancel(fetch.attempt) for fetch in stuck} <= set(desk.actions)
    for fetch in stuck:
        desk.fail(fetch, Remedy.CANCELLED)
    anns = owned(desk, ME, ANN, BOB, CY)[ANN]
    desk.tell(desk.fetching(ANN, *anns))  # saying again what it has does not help it
    came = desk.run()
    assert slow not in came
    assert {*came[ORIGIN], *came[peer_source(BOB)], *came[peer_source(CY)]} >= set(anns)
    assert Finish(BLOB) in desk.actions


def test_a_slow_peer_that_has_all_of_it_at_last_is_a_seed_again() -> None:
    """Without it, what an origin has lost meanwhile could not be had from anybody."""
    desk = Desk(120)
    slow = slow_peer(desk)
    for fetch in [fetch for fetch in desk.open.values() if fetch.source == slow]:
        desk.fail(fetch, Remedy.CANCELLED)
    desk.tell(desk.complete(ANN))
    came = desk.run()
    assert came[slow]
    assert Finish(BLOB) in desk.actions


def test_a_peer_that_is_only_slower_keeps_what_it_is_reading() -> None:
    desk = Desk(120)
    slow = slow_peer(desk, gives=10)
    assert any(fetch.source == slow for fetch in desk.open.values())
    assert not [action for action in desk.actions if isinstance(action, Cancel)]
    assert slow in desk.run()


@pytest.mark.parametrize(("chunk_s", "widens"), [(0.3, True), (4.0, False)])
def test_a_swarm_opens_more_to_an_origin_only_while_chunks_come_quickly(
    chunk_s: float, widens: bool
) -> None:
    """As many as come in that time: what 4 s take comes over a link that others share."""
    desk = Desk(400)
    desk.start(desk.fetching(ANN), desk.fetching(BOB), desk.fetching(CY))
    most = 0
    for _ in range(40):
        mine = [fetch for fetch in desk.open.values() if fetch.source == ORIGIN]
        most = max(most, len(mine))
        desk.now_s += chunk_s - 0.1 * len(mine)
        for fetch in mine:
            desk.deliver(fetch)
    assert (most > LIMITS.seed_connections_min) is widens


def test_lost_chunks_of_a_small_blob_come_from_who_has_it() -> None:
    desk = Desk(1)
    desk.grid = ChunkGrid(1000, CHUNK)
    desk.start(desk.complete(ANN))
    assert [fetch.source for fetch in desk.open.values()] == [peer_source(ANN)]


def test_before_others_may_have_begun_one_chunk_is_asked_for() -> None:
    limits = PlannerLimits(connections_start=4, connections_max=32, gathering_s=0.5)
    planner = Planner(limits, ME)
    grid = ChunkGrid(40 * CHUNK, CHUNK)
    blobs = BlobsAdded((BlobAdded(BLOB, grid, (ORIGIN,)),))
    first = planner.handle(blobs, 10.0)
    assert len([action for action in first if isinstance(action, Fetch)]) == 1
    (wake,) = [action for action in first if isinstance(action, Wake)]
    assert wake.at_s == 10.5
    assert len(planner.handle(TimerDue(), 10.5)) >= 3


# Readers of this node


def test_what_a_reader_waits_for_is_asked_of_whom_it_is_expected_from():
    desk = Desk()
    desk.start(desk.fetching(ANN), desk.fetching(BOB))
    pending = desk.planner._blobs[BLOB].pending
    waiting = [chunk for chunk in range(desk.grid.count) if pending.waits(chunk)]
    lots: dict[int, SourceId] = {}
    for chunk in waiting:  # two of each lot: within what readers may have of anybody
        if [*lots.values()].count(pending.lot_of(chunk)) < 2:
            lots[chunk] = pending.lot_of(chunk)
    asked = [desk.tell(ChunkWanted(BLOB, chunk, Waiter.READER)) for chunk in lots]
    sources = [each.source for found in asked for each in found if isinstance(each, Fetch)]
    assert sources == [lot or ORIGIN for lot in lots.values()]
    assert len(set(sources)) > 1


def test_a_reader_waits_for_no_peer_that_is_left_alone():
    desk = Desk()
    desk.start(desk.fetching(ANN))
    state = desk.planner._blobs[BLOB]
    theirs = [chunk for chunk in range(40) if state.pending.waits(chunk)]
    theirs = [chunk for chunk in theirs if state.pending.lot_of(chunk) == peer_source(ANN)]
    for fetch in [each for each in desk.open.values() if each.source == peer_source(ANN)]:
        desk.fail(fetch, Remedy.NOT_YET)
    asked = desk.tell(ChunkWanted(BLOB, theirs[-1], Waiter.READER))
    sources = [each.source for each in asked if isinstance(each, Fetch)]
    assert sources == [ORIGIN]
