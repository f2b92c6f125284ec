"""What is recommended, against numbers worked out by hand and properties that must hold."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.forecast.demand import Sample, growths, quantile, rate_between, slope
from modelcache.forecast.recommend import (
    Costs,
    ScaleUp,
    hot_spares,
    lead_time_load,
    recommended_replicas,
    replicas_for,
    scale_up_cost,
    warm_slots_wanted,
)

COSTS = Costs(late=9, idle=1)


def steady(rate, count=100, every_s=10.0):
    return [Sample(index * every_s, rate) for index in range(count)]


def test_no_demand_input_gives_no_recommendation():
    assert recommended_replicas([], horizon_s=60, costs=COSTS, per_replica=2) is None


def test_steady_demand_needs_what_it_needs():
    samples = steady(24.0)
    assert recommended_replicas(samples, horizon_s=60, costs=COSTS, per_replica=2) == 12


def test_demand_that_ended_needs_nothing_however_it_grew_before():
    samples = [*[Sample(i, float(i)) for i in range(100)], Sample(100, 0.0)]
    assert recommended_replicas(samples, horizon_s=10, costs=COSTS, per_replica=1) == 0


def test_short_history_goes_by_its_slope():
    samples = [Sample(i, 10 + 0.5 * i) for i in range(10)]  # 14.5 now
    assert recommended_replicas(samples, horizon_s=5, costs=COSTS, per_replica=1) == 17
    # A minute would be 30 more; in nine seconds it has grown by 4.5.
    assert recommended_replicas(samples, horizon_s=60, costs=COSTS, per_replica=1) == 19


def test_longer_lead_times_never_need_fewer_on_a_ramp():
    samples = [Sample(i * 10.0, 5 + 0.1 * i) for i in range(200)]
    found = [
        recommended_replicas(samples, horizon_s=horizon, costs=COSTS, per_replica=1)
        for horizon in (10, 60, 300, 600)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_level_is_the_cheapest_in_expectation():
    """The newsvendor's claim, by brute force over a made-up history of growths."""
    chance = random.Random(7)
    samples, rate = [], 100.0
    for index in range(400):
        rate = max(0.0, rate + chance.gauss(0, 4))
        samples.append(Sample(float(index), rate))
    changes = [max(0.0, each) for each in growths(samples, 20)]
    costs = Costs(late=5, idle=1)
    chosen = recommended_replicas(samples, horizon_s=20, costs=costs, per_replica=1)

    def cost(replicas):
        needs = [samples[-1].rate + each for each in changes]
        return sum(5 * max(0, need - replicas) + max(0, replicas - need) for need in needs)

    cheapest = min(range(300), key=cost)
    assert abs(chosen - cheapest) <= 1


@given(st.floats(0, 1e6), st.floats(0.01, 1e3))
def test_recommended_replicas_carry_the_rate_and_one_fewer_would_not(rate, per_replica):
    count = replicas_for(rate, per_replica)
    if count < 100_000:
        assert count * per_replica >= rate * (1 - 1e-6) - 1e-6 * per_replica
        assert count == 0 or (count - 1) * per_replica < rate


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_covers_its_share_and_no_smaller_value_does(values, level):
    found = quantile(values, level)
    assert sum(each <= found for each in values) >= level * len(values) - 1e-6
    assert sum(each < found for each in values) < level * len(values)


@pytest.mark.parametrize("costs", [Costs(0, 1), Costs(1, 0), Costs(-1, 2), Costs(math.inf, 1)])
def test_costs_that_mean_nothing_are_refused(costs):
    with pytest.raises(UsageError):
        _ = costs.level


def test_a_capacity_of_nothing_is_refused():
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError):
            replicas_for(1, wrong)


def test_a_counter_that_began_anew_counts_from_zero():
    assert rate_between(100, 120, 10) == 2
    assert rate_between(100, 30, 10) == 3
    assert rate_between(1, 2, 0) is None


def test_what_waits_is_to_be_gone_within_the_horizon():
    samples = [*steady(24.0, 50), Sample(500, 24.0, waiting=240)]
    found = recommended_replicas(samples, horizon_s=60, costs=COSTS, per_replica=2)
    assert found == (24 + 240 / 60) / 2
    nothing_comes = [Sample(0, 0.0, waiting=3)]
    assert recommended_replicas(nothing_comes, horizon_s=600, costs=COSTS, per_replica=2) == 1
    soon = recommended_replicas(nothing_comes, horizon_s=0, costs=COSTS, per_replica=0.01)
    assert soon == 3 / 15 / 0.01


def test_a_step_is_no_slope():
    for before in range(1, 12):
        step = [Sample(i * 10.0, 24.0 if i >= before else 2.0) for i in range(20)]
        for end in range(1, 20):
            for window_s in (30, 60, 100, 200):
                assert slope(step[:end], window_s) == 0
    step = [*steady(2.0, 8), *[Sample(80 + i * 10.0, 24.0) for i in range(5)]]
    assert recommended_replicas(step, horizon_s=90, costs=COSTS, per_replica=2) == 12


def test_slope_is_of_the_window_alone():
    samples = [*steady(50, 100, 1.0), *[Sample(100 + i, 50 + 2 * i) for i in range(60)]]
    assert slope(samples, 60) == pytest.approx(2)
    assert slope([], 60) == slope(samples[:1], 60) == 0


def test_load_looks_ahead_by_the_lead_time_and_never_down():
    assert lead_time_load(10, 0.5, 60, 20) == 2
    assert lead_time_load(10, -0.5, 60, 20) == 0.5


def test_spares_count_what_is_on_its_way_in_time():
    assert hot_spares(10, 6, 3) == 1
    assert hot_spares(10, 12, 0) == 0
    assert warm_slots_wanted(16, 10) == 6


def test_scale_up_within_warm_places_reads_nothing():
    assert scale_up_cost(3, 3, 140, warm_s=5, cold_s=90) == ScaleUp(0, 5)
    assert scale_up_cost(4, 3, 140, warm_s=5, cold_s=90) == ScaleUp(140, 90)
    assert scale_up_cost(0, 3, 140, warm_s=5, cold_s=90) == ScaleUp(0, 0.0)


def test_a_gap_is_no_ramp():
    """Nobody read for an hour, in which demand went from 2 to 24: who knows within how long."""
    before = [Sample(i * 10.0, 2.0) for i in range(60)]
    after = [Sample(4200 + i * 10.0, 24.0) for i in range(60)]
    assert set(growths([*before, *after], 60)) == {0}
    # Were the jump a growth within a minute, 23: it is more than one of a hundred of those seen.
    found = recommended_replicas(
        [*before, *after], horizon_s=60, costs=Costs(late=99, idle=1), per_replica=2
    )
    assert found == 12


def test_growth_on_both_sides_of_a_gap_counts():
    ramp = [Sample(float(i), 0.5 * i) for i in range(100)]
    late = [Sample(5000.0 + i, 100 + 0.5 * i) for i in range(100)]
    found = growths([*ramp, *late], 10)
    assert found == [5.0] * 180
    # What is as long as the horizon was seen at both ends, whatever lies between them.
    across = growths([Sample(0, 1.0), Sample(1, 1.0), Sample(61, 4.0), Sample(62, 4.0)], 60)
    assert across == [3.0, 3.0]


def test_samples_that_are_far_apart_as_a_rule_have_no_gaps():
    samples = [Sample(i * 300.0, float(i)) for i in range(20)]
    assert growths(samples, 60) == [1.0] * 19
    assert growths([], 60) == []
    assert growths([Sample(0, 1.0)], 60) == []
