"""What one scaler takes over from another: samples of demand, and starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from modelcache.agent.clock import wall_clock_s
from modelcache.faces.scaler.checkpoint import Ended, KeptStarts, server_print, source_print
from modelcache.faces.scaler.cluster import Server, View
from modelcache.faces.scaler.declared import FromPrometheus, Scale
from modelcache.faces.scaler.demand import HISTORY_S, SAMPLES_MAX, STALE_MIN_S, Demand
from modelcache.faces.scaler.facts import PodFacts
from modelcache.faces.scaler.scraping import Scraper
from modelcache.faces.scaler.starts import FRESH_S, KEPT, Starts
from modelcache.forecast.demand import Sample
from tests.faces.scaler.test_starts import MODEL, NOW_S, begun, scale_with, view

QUERY = {"prometheus": {"query": "sum(x)"}, "intervalSeconds": 5}
SOURCE = source_print(FromPrometheus("sum(x)"))


@pytest.fixture
def demand() -> Iterator[Demand]:
    scraper = Scraper()
    yield Demand(scraper)
    scraper.close()


def following(demand: Demand, **spec: Any) -> Scale:
    scale = scale_with(demand=spec or QUERY)
    demand.follow(View(scales={scale.key: scale}))
    return scale


def history(until_s: float, count: int, every_s: float = 5.0) -> list[Sample]:
    """In Unix time; the newest at `until_s`."""
    return [Sample(until_s - every_s * i, float(i), 1.0) for i in reversed(range(count))]


def times(samples: tuple[Sample, ...]) -> list[float]:
    return [each.at_s for each in samples]


# Demand


def test_samples_of_the_same_source_are_taken_once(demand: Demand):
    scale = following(demand)
    old = history(wall_clock_s() - 2, 100)
    assert demand.adopt(scale.key, SOURCE, old) == 100
    assert demand.adopt(scale.key, SOURCE, old) == 0
    source, kept = demand.kept(scale.key)
    assert source == SOURCE
    assert times(kept) == pytest.approx(times(tuple(old)), abs=0.1)
    assert [each.rate for each in kept] == [each.rate for each in old]
    assert len(demand.samples(scale.key)) == 100  # the newest is fresh enough to be told


def test_what_is_old_is_history_and_not_demand(demand: Demand):
    scale = following(demand)
    demand.adopt(scale.key, SOURCE, history(wall_clock_s() - STALE_MIN_S - 1, 100))
    assert demand.samples(scale.key) == ()
    assert len(demand.kept(scale.key)[1]) == 100


def test_samples_of_another_source_are_left(demand: Demand):
    scale = following(demand, prometheus={"query": "sum(y)"})
    assert demand.adopt(scale.key, SOURCE, history(wall_clock_s(), 9)) == 0
    assert demand.kept(scale.key)[1] == ()
    assert demand.adopt(("default", "gone"), SOURCE, history(wall_clock_s(), 9)) == 0


def test_samples_from_before_the_window_or_from_the_future_are_left(demand: Demand):
    scale = following(demand)
    now_s = wall_clock_s()
    far = [Sample(now_s - HISTORY_S - 60, 1.0), Sample(now_s - 60, 2.0), Sample(now_s + 60, 3.0)]
    assert demand.adopt(scale.key, SOURCE, far) == 1
    assert [each.rate for each in demand.kept(scale.key)[1]] == [2.0]


def test_two_histories_become_one_in_order(demand: Demand):
    """One has a gap, which the other fills; where both have samples, one of them is enough."""
    scale = following(demand)
    now_s = wall_clock_s()
    mine = [*history(now_s - 300, 20), *history(now_s - 1, 20)]
    demand.adopt(scale.key, SOURCE, mine)
    theirs = history(now_s - 2, 80)  # one second beside each of the newer ones
    assert 35 <= demand.adopt(scale.key, SOURCE, theirs) <= 42
    kept = demand.kept(scale.key)[1]
    assert times(kept) == sorted(times(kept))
    longest = max(b - a for a, b in pairwise(times(kept)))
    assert longest <= 10.1


def test_no_more_is_kept_than_ever(demand: Demand):
    scale = following(demand, prometheus={"query": "sum(x)"}, intervalSeconds=1)
    now_s = wall_clock_s()
    demand.adopt(scale.key, SOURCE, history(now_s, 1000, 1.1))
    demand.adopt(scale.key, SOURCE, history(now_s - 1200, 1000, 1.1))
    kept = demand.kept(scale.key)[1]
    assert len(kept) == SAMPLES_MAX
    assert kept[-1].at_s == pytest.approx(now_s, abs=0.1)


# Starts


def ready(took_s: float, ready_s: float = NOW_S) -> Ended:
    return Ended(ready_s, took_s)


def looked(scale: Scale, *pods: PodFacts, warm: bool = True) -> Starts:
    """A scaler that has just begun to look."""
    starts = Starts()
    starts.look(seen_by(scale, *pods, warm=warm))
    return starts


def seen_by(scale: Scale, *pods: PodFacts, warm: bool = True, at_s: float = NOW_S) -> View:
    here = view(scale, begun(NOW_S), at_s, warm=warm)
    return replace(here, servers={scale.key: Server(pods, MODEL, 1)})


def test_starts_of_the_same_server_are_taken_once():
    scale = scale_with()
    starts = looked(scale)
    kept = KeptStarts(warm=(ready(30, 1), ready(31, 2)), cold=(ready(500, 3),), abandoned=4)
    for _ in range(2):
        assert starts.adopt(scale.key, server_print(scale), kept)
        seen = starts.seen(scale.key)
        assert (list(seen.warm), list(seen.cold), seen.abandoned) == ([30, 31], [500], 4)
    assert starts.kept(scale.key) == (server_print(scale), kept)


def test_starts_of_another_server_are_left():
    scale, other = scale_with(), scale_with(model="b" * 64)
    starts = looked(scale)
    assert not starts.adopt(scale.key, server_print(other), KeptStarts(warm=(ready(30),)))
    assert starts.seen(scale.key).warm == ()


def test_a_server_that_becomes_another_begins_anew():
    scale = scale_with()
    starts = looked(scale)
    starts.adopt(scale.key, server_print(scale), KeptStarts(warm=(ready(30),), abandoned=1))
    starts.look(seen_by(replace(scale, generation=2)))
    assert starts.seen(scale.key).warm == (30,)
    for other in (scale_with(model="b" * 64), replace(scale, uid="recreated")):
        starts.adopt(scale.key, server_print(scale), KeptStarts(warm=(ready(30),), abandoned=1))
        starts.look(seen_by(other))
        assert (starts.seen(scale.key).warm, starts.seen(scale.key).abandoned) == ((), 0)
        starts.look(seen_by(scale))


def test_two_that_saw_the_same_starts_have_them_once_and_the_newest_last():
    scale = scale_with()
    starts = looked(scale)
    server = server_print(scale)
    starts.adopt(scale.key, server, KeptStarts(warm=(ready(30, 1), ready(32, 3), ready(32, 3))))
    starts.adopt(scale.key, server, KeptStarts(warm=(ready(31, 2), ready(32, 3), ready(30, 1))))
    assert starts.seen(scale.key).warm == (30, 31, 32, 32)  # two pods in one second are two
    many = tuple(ready(float(i), 10.0 + i) for i in range(KEPT))
    starts.adopt(scale.key, server, KeptStarts(warm=many))
    assert starts.seen(scale.key).warm == tuple(float(i) for i in range(KEPT))


@pytest.mark.parametrize("warm", [True, False])
def test_a_start_under_way_ends_as_what_it_began_as(warm: bool):
    """It began before this scaler did, and its node has the model by now."""
    scale, pod = scale_with(), begun(NOW_S - FRESH_S - 90)
    starts = looked(scale, pod)
    assert starts.kept(scale.key)[1].under_way == {}  # nobody here knows
    starts.adopt(scale.key, server_print(scale), KeptStarts(under_way={pod.uid: warm}))
    assert starts.kept(scale.key)[1].under_way == {pod.uid: warm}
    starts.look(seen_by(scale, replace(pod, ready_s=NOW_S + 5), at_s=NOW_S + 5))
    seen = starts.seen(scale.key)
    assert (seen.warm if warm else seen.cold) == (FRESH_S + 95,)
    assert not (seen.cold if warm else seen.warm)


def test_a_start_that_ended_while_nobody_looked_counts():
    scale, pod = scale_with(), replace(begun(NOW_S - 90), ready_s=NOW_S - 10)
    starts = looked(scale, pod)
    kept = KeptStarts(under_way={pod.uid: True, "went-meanwhile": False})
    for _ in range(2):
        starts.adopt(scale.key, server_print(scale), kept)
        seen = starts.seen(scale.key)
        assert (seen.warm, seen.cold, seen.abandoned) == ((80,), (), 0)
    starts.look(seen_by(scale))
    assert starts.seen(scale.key).abandoned == 0  # of one that was ready, and of one unknown


def test_what_was_seen_here_is_not_overruled():
    scale, pod = scale_with(), begun(NOW_S - 1)
    starts = looked(scale, pod)
    starts.adopt(scale.key, server_print(scale), KeptStarts(under_way={pod.uid: False}))
    assert starts.kept(scale.key)[1].under_way == {pod.uid: True}
