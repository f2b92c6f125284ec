"""Chunks that wait, by who should give them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelcache.planner import SourceId
from modelcache.planner.intervals import Intervals
from modelcache.planner.lots import ORIGIN, Lots

SOURCES = [ORIGIN, SourceId("peer:a"), SourceId("peer:b")]
COUNT = 24


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "discard", "take", "last", "move"]),
            st.integers(0, COUNT - 1),
            st.sampled_from(SOURCES),
        ),
        max_size=60,
    ),
    shared_after=st.integers(0, 20),
)
def test_lots_are_a_set_of_chunks_each_of_which_is_in_one_lot(
    steps: list[tuple[str, int, SourceId]], shared_after: int
) -> None:
    lots = Lots(Intervals.missing(COUNT, {3, 4}))
    waiting = set(range(COUNT)) - {3, 4}
    belongs: dict[int, SourceId] = {}
    for number, (what, chunk, source) in enumerate(steps):
        if number == shared_after:
            lots.share(COUNT, lambda each: belongs.get(each, SOURCES[each % 3]))
        match what:
            case "add":
                lots.add(chunk, min(COUNT, chunk + 3))
                waiting |= set(range(chunk, min(COUNT, chunk + 3)))
            case "discard":
                lots.discard(chunk)
                waiting.discard(chunk)
            case "take" if lots.count(source):
                first, end = lots.take(source, 2)
                assert set(range(first, end)) <= waiting
                waiting -= set(range(first, end))
            case "last" if lots.count(source):
                (last,) = lots.last_ones(source, 1)
                assert last == max(lots.last_ones(source, 99))
                lots.discard(last)
                waiting.remove(last)
            case "move" if number > shared_after:
                belongs[chunk] = source
                held = lots.waits(chunk)
                before = lots.count(source)
                lots.move([chunk])
                assert lots.count(source) >= before
                assert lots.waits(chunk) == held
        assert len(lots) == len(waiting) == sum(lots.count(each) for each in SOURCES)
        assert {chunk for chunk in range(COUNT) if lots.waits(chunk)} == waiting
        assert set(lots.sources()) == {each for each in SOURCES if lots.count(each)}
