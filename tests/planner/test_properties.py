"""What holds for every transfer, whatever goes wrong."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.planner import BlobAdded, PlannerLimits, Remedy, SourceId
from modelcache.planner.intervals import Intervals
from tests.planner.world import Trouble, World

CHUNK = 16 * MIB
ORIGIN = SourceId("origin")
MIRROR = SourceId("mirror")
PATIENT = PlannerLimits(retries_max=10_000, connections_max=16)


@st.composite
def wanted(draw: st.DrawFn, sources: tuple[SourceId, ...] = (ORIGIN,)) -> list[BlobAdded]:
    """A model: blobs of every shape, some begun before."""
    blobs = []
    for number in range(draw(st.integers(1, 12))):
        size = draw(
            st.one_of(
                st.just(0),
                st.integers(1, 2 * MIB),
                st.integers(2 * MIB + 1, 20 * CHUNK),
            )
        )
        grid = ChunkGrid(size, CHUNK)
        small = size <= 2 * MIB
        ranges = small or draw(st.booleans())
        done = draw(st.frozensets(st.integers(0, max(0, grid.count - 1)), max_size=5))
        blobs.append(
            BlobAdded(
                BlobId(f"blob-{number}"),
                grid,
                sources,
                done=done if grid.count and ranges and not small else frozenset(),
                ranges=ranges,
                in_order=draw(st.booleans()),
            )
        )
    return blobs


@given(wanted())
def test_every_missing_chunk_is_fetched_exactly_once_when_nothing_fails(
    blobs: list[BlobAdded],
) -> None:
    world = World(PATIENT)
    world.run(*blobs)
    expected = {
        (blob.blob, chunk)
        for blob in blobs
        for chunk in range(blob.grid.count)
        if chunk not in blob.done
    }
    assert dict(world.fetched) == dict.fromkeys(expected, 1)
    assert sorted(world.finished) == sorted(blob.blob for blob in blobs)


@given(wanted(), st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=200, deadline=None)
def test_every_blob_finishes_under_any_finite_failures_of_a_working_source(
    blobs: list[BlobAdded], seed: int, failures: int, stalls: int, mismatches: int
) -> None:
    world = World(PATIENT, Trouble(seed, failures, stalls=stalls, mismatches=mismatches))
    world.run(*blobs)
    assert sorted(world.finished) == sorted(blob.blob for blob in blobs)
    assert not world.given_up


@given(wanted(), st.integers(0, 2**32), st.integers(0, 200))
@settings(deadline=None)
def test_the_end_is_reached_with_few_retries_too(
    blobs: list[BlobAdded], seed: int, failures: int
) -> None:
    limits = replace(PATIENT, retries_max=2)
    world = World(limits, Trouble(seed, failures, share=0.8))
    world.run(*blobs)
    ends = set(world.finished) | set(world.given_up)
    assert ends == {blob.blob for blob in blobs}
    assert not set(world.finished) & set(world.given_up)


@given(wanted((ORIGIN, MIRROR)), st.integers(0, 2**32), st.integers(0, 30))
@settings(deadline=None)
def test_a_refusing_source_is_replaced_by_one_that_works(
    blobs: list[BlobAdded], seed: int, failures: int
) -> None:
    world = World(PATIENT, Trouble(seed, failures, refusing=frozenset({ORIGIN})))
    world.run(*blobs)
    assert sorted(world.finished) == sorted(blob.blob for blob in blobs)


@given(wanted((ORIGIN, MIRROR)))
@settings(deadline=None)
def test_blobs_are_given_up_when_every_source_refuses(blobs: list[BlobAdded]) -> None:
    world = World(PATIENT, Trouble(refusing=frozenset({ORIGIN, MIRROR})))
    world.run(*blobs)
    for blob in blobs:
        missing = blob.grid.count - len(blob.done)
        assert (blob.blob in world.given_up) == bool(missing)
    assert all(failure.remedy is Remedy.REFUSED for failure in world.given_up.values())


@given(wanted(), st.integers(0, 2**32), st.integers(0, 30))
@settings(deadline=None)
def test_equal_events_give_equal_actions(blobs: list[BlobAdded], seed: int, failures: int) -> None:
    first, second = (World(PATIENT, Trouble(seed, failures, stalls=1)) for _ in range(2))
    first.run(*blobs)
    second.run(*blobs)
    assert first.actions == second.actions


@given(wanted(), st.integers(0, 2**32))
@settings(deadline=None)
def test_hedges_stay_within_their_budget(blobs: list[BlobAdded], seed: int) -> None:
    world = World(PATIENT, Trouble(seed, stalls=8))
    world.run(*blobs)
    planned = sum(blob.grid.size_bytes for blob in blobs)
    hedged = sum(
        world.blobs[run.blob].grid.span(run.first, run.count).size_bytes
        for fetch in world.fetches
        if fetch.hedge
        for run in fetch.runs
    )
    assert hedged <= max(CHUNK, PATIENT.hedge_share * planned)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "discard", "take"]), st.integers(0, 40), st.integers(1, 9)
        )
    )
)
def test_intervals_behave_like_a_set(steps: list[tuple[str, int, int]]) -> None:
    real, model = Intervals(), set[int]()
    for what, number, count in steps:
        if what == "add":
            real.add(number, number + count)
            model.update(range(number, number + count))
        elif what == "discard":
            real.discard(number)
            model.discard(number)
        elif model:
            first, end = real.take(count)
            assert first == min(model)
            assert set(range(first, end)) <= model
            model.difference_update(range(first, end))
        assert len(real) == len(model)
        assert [n for first, end in real for n in range(first, end)] == sorted(model)
