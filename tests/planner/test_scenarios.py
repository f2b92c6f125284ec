"""Single decisions of the planner, each by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.planner import (
    AttemptFailed,
    BlobAdded,
    BlobsAdded,
    ChunkStored,
    Failure,
    Fetch,
    GiveUp,
    InSequence,
    Planner,
    PlannerLimits,
    Remedy,
    SourceId,
)
from modelcache.planner.concurrency import Concurrency
from tests.planner.world import Trouble, World

CHUNK = 16 * MIB
ORIGIN = SourceId("origin")
MIRROR = SourceId("mirror")
LIMITS = PlannerLimits(connections_start=4, connections_max=16)


def blob(
    name: str, size: int, sources: tuple[SourceId, ...] = (ORIGIN,), **more: bool
) -> BlobAdded:
    return BlobAdded(BlobId(name), ChunkGrid(size, CHUNK), sources, **more)


def fetches(planner: Planner, *blobs: BlobAdded) -> list[Fetch]:
    actions = planner.handle(BlobsAdded(blobs), 0.0)
    return [action for action in actions if isinstance(action, Fetch)]


def test_largest_blob_goes_first() -> None:
    first = fetches(Planner(LIMITS), blob("small", 4 * CHUNK), blob("large", 9 * CHUNK))
    assert {fetch.runs[0].blob for fetch in first} == {"large"}


def test_small_blobs_travel_beside_large_ones_in_batches() -> None:
    many = [blob(f"s{number}", 1000) for number in range(400)]
    world = World(LIMITS)
    world.run(blob("large", 40 * CHUNK), *many)
    batches = [fetch for fetch in world.fetches if fetch.runs[0].blob != "large"]
    assert max(len(fetch.runs) for fetch in batches) > 4
    assert all(fetch.lanes == 1 for fetch in batches[:4]), "a quarter of four connections"
    assert all(run.blob != "large" for fetch in batches for run in fetch.runs)
    positions = [n for n, fetch in enumerate(world.fetches) if fetch in batches]
    assert positions[0] < len(world.fetches) / 2, "small ones did not wait for the large one"


def test_requests_grow_longer_where_the_first_byte_takes_long() -> None:
    near = World(LIMITS, chunk_s=1.0, first_byte_s=0.001)
    near.run(blob("b", 200 * CHUNK))
    far = World(LIMITS, chunk_s=1.0, first_byte_s=0.2)
    far.run(blob("b", 200 * CHUNK))
    assert max(fetch.runs[0].count for fetch in near.fetches) == 1
    assert max(fetch.runs[0].count for fetch in far.fetches) > 2


def test_a_straggler_at_the_end_is_hedged_and_then_cancelled() -> None:
    world = World(LIMITS, Trouble(stalls=1))
    world.run(blob("b", 30 * CHUNK))
    hedges = [fetch for fetch in world.fetches if fetch.hedge]
    assert len(hedges) == 1
    assert len(world.dead) == 1
    assert world.finished == ["b"]


def test_a_hedge_prefers_another_source() -> None:
    world = World(LIMITS, Trouble(stalls=1))
    world.run(blob("b", 30 * CHUNK, (ORIGIN, MIRROR)))
    (hedge,) = [fetch for fetch in world.fetches if fetch.hedge]
    slow = next(fetch for fetch in world.fetches if not fetch.hedge and fetch.attempt in world.dead)
    assert hedge.source != slow.source


def test_a_failed_stream_without_ranges_begins_anew() -> None:
    world = World(LIMITS, Trouble(seed=5, failures=1, share=1.0, kinds=(Remedy.RETRY,)))
    world.run(blob("b", 5 * CHUNK, ranges=False))
    assert [fetch.runs[0].count for fetch in world.fetches] == [5, 5]
    assert world.finished == ["b"]


def test_chunks_of_an_ordered_blob_stay_close_to_the_front() -> None:
    first = fetches(
        Planner(LIMITS),
        *(blob(f"b{number}", 20 * CHUNK, in_order=True) for number in range(4)),
    )
    assert len({fetch.runs[0].blob for fetch in first}) > 1


def test_blobs_of_one_sequence_come_one_behind_the_other() -> None:
    whole = InSequence("layer", 12 * CHUNK)
    world = World(LIMITS)
    world.run(
        *(replace(blob(f"m{n}", 4 * CHUNK, in_order=True), sequence=whole) for n in (2, 0, 1)),
        blob("other", 8 * CHUNK),
    )
    begun = [fetch.runs[0].blob for fetch in world.fetches]
    assert list(dict.fromkeys(begun)) == ["m2", "m0", "m1", "other"]
    for former, latter in (("m2", "m0"), ("m0", "m1")):
        assert former not in begun[begun.index(latter) :], "all of it was on its way before"


def test_sequences_share_the_connections_as_blobs_do() -> None:
    members = [
        replace(blob(f"{name}{n}", 4 * CHUNK, in_order=True), sequence=InSequence(name, 16 * CHUNK))
        for name in "ab"
        for n in range(4)
    ]
    first = fetches(Planner(LIMITS), *members)
    assert sorted(fetch.runs[0].blob for fetch in first) == ["a0", "a0", "b0", "b0"]


def test_a_lost_attempt_returns_its_chunk_to_the_queue() -> None:
    planner = Planner(LIMITS)
    (fetch, *_) = fetches(planner, blob("b", 4 * CHUNK))
    failed = AttemptFailed(fetch.attempt, Failure(Remedy.RENEW, "credentials_expired"))
    actions = planner.handle(failed, 1.0)
    again = [action for action in actions if isinstance(action, Fetch)]
    assert [action.runs for action in again] == [fetch.runs]
    assert again[0].renew


def test_a_throttled_source_rests_as_long_as_it_asked() -> None:
    planner = Planner(LIMITS)
    first, *others = fetches(planner, blob("b", 40 * CHUNK))
    failure = Failure(Remedy.THROTTLED, "throttled", retry_after_s=7.0)
    actions = planner.handle(AttemptFailed(first.attempt, failure), 1.0)
    assert not [action for action in actions if isinstance(action, Fetch)]
    for other in others:
        stored = ChunkStored(other.attempt, BlobId("b"), other.runs[0].first)
        assert not [a for a in planner.handle(stored, 2.0) if isinstance(a, Fetch)]


def test_a_blob_whose_checksum_never_holds_is_given_up() -> None:
    world = World(LIMITS, Trouble(mismatches=10))
    world.run(blob("b", 3 * CHUNK))
    assert world.given_up[BlobId("b")].code == "digest_mismatch"


def test_a_small_blob_that_stays_wrong_is_given_up_soon_and_its_batch_goes_on() -> None:
    planner = Planner(replace(LIMITS, connections_start=1, connections_max=1))
    (fetch,) = fetches(planner, blob("bad", 10), blob("good", 10))
    failure = Failure(Remedy.CORRUPT, "digest_mismatch")
    rounds = 0
    given_up: list[GiveUp] = []
    while not given_up:
        rounds += fetch.runs[0].blob == "bad"
        actions = planner.handle(AttemptFailed(fetch.attempt, failure), 0.0)
        given_up = [action for action in actions if isinstance(action, GiveUp)]
        (fetch,) = (action for action in actions if isinstance(action, Fetch))  # without a wait
    assert rounds == LIMITS.corrupt_rounds_max + 1
    assert given_up == [GiveUp(BlobId("bad"), failure)]
    assert [run.blob for run in fetch.runs] == ["good"]


@pytest.mark.parametrize("knee", [1, 4, 8, 16, 40])
def test_concurrency_settles_near_the_knee_of_throughput(knee: int) -> None:
    limits = replace(LIMITS, connections_max=64)
    control = Concurrency(limits)
    now_s = 0.0
    for _ in range(4000):
        rate = 100e6 * min(control.limit, knee)
        now_s += CHUNK / rate
        control.done(CHUNK, CHUNK, now_s, saturated=True)
    assert knee / 2 <= control.limit <= max(4, 3 * knee)


def test_concurrency_halves_when_throttled() -> None:
    control = Concurrency(LIMITS)
    control.throttled()
    assert control.limit == 2
    for _ in range(5):
        control.throttled()
    assert control.limit == 1
