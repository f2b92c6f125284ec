"""All that is told of one model's replicas, against numbers worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.forecast.demand import Sample
from modelcache.forecast.outlook import Asked, Lead, Seen, Starting, lead_of, outlook
from modelcache.forecast.recommend import Costs, ScaleUp
from modelcache.forecast.slots import Held, Place, Ready

ASKED = Asked(
    gpus=2,
    per_replica=2.0,
    costs=Costs(late=9, idle=1),
    delay_s=30,
    warm_s=60,
    cold_s=600,
    scale_up=3,
)
WARM, COMING = Held(warm=True), Held(warm=False, missing_bytes=7, ready=Ready(100, 150))


def places(*held, free=4):
    return [
        Place(f"n{index}", free_gpus=free, models={"m": each} if each else {})
        for index, each in enumerate(held)
    ]


def rising(count=400, every_s=5.0, by=0.02):
    """Requests a second that grow steadily."""
    return [Sample(index * every_s, 10 + by * index * every_s) for index in range(count)]


def look(
    asked=ASKED, *, where=(), ready=0, starting=(), pending=0, samples=(), seen=None, size=100
):
    return outlook(
        asked,
        "m",
        where,
        ready=ready,
        starting=starting,
        samples=samples,
        seen=seen or Seen(),
        model_bytes=size,
        pending=pending,
    )


def test_where_nothing_is_known_nothing_is_recommended():
    found = look()
    assert (found.recommended, found.spares, found.slots_wanted, found.rate) == (None,) * 4
    assert (found.warm_nodes, found.warm_slots, found.starting) == (0, 0, 0)
    assert found.cold == Lead(600, 600, "declared")


def test_the_horizon_is_a_warm_start_where_there_are_warm_places_for_all():
    samples = rising()  # 49.9 at last; 0.02 a second more
    rate = samples[-1].rate
    warm, cold = (rate + 0.02 * horizon for horizon in (90, 630))
    found = look(where=places(WARM, None), ready=25, samples=samples)
    assert (found.warm_nodes, found.warm_slots) == (1, 2)
    assert found.recommended == -(-warm // 2) == 26
    assert found.slots_wanted == -(-cold // 2) - 26 == 6
    # With the same places and fewer replicas, the next one is a cold one.
    assert look(where=places(WARM, None), ready=20, samples=samples).recommended == 32


def test_spares_count_what_will_be_ready_within_a_warm_start():
    samples = rising()
    starting = [Starting(warm=True, age_s=1), Starting(warm=False, age_s=50)]
    found = look(where=places(WARM, WARM), ready=20, starting=starting, samples=samples)
    assert (found.starting, found.spares) == (2, 26 - 20 - 1)
    soon = [*starting, Starting(warm=False, age_s=550)]
    assert look(where=places(WARM), ready=20, starting=soon, samples=samples).spares == 4


def test_leads_are_observed_before_predicted_before_declared():
    seen = Seen(warm=[20, 21, 22, 23, 90])
    found = look(where=places(COMING), seen=seen)
    assert found.warm == Lead(22, 90, "observed", confident=False, starts=5)
    assert found.cold == Lead(100 + 22, 150 + 22, "predicted")
    assert look(where=places(WARM), seen=seen).cold == Lead(600, 600, "declared")
    assert look(seen=Seen(cold=[300.0] * 20)).cold == Lead(
        300, 300, "observed", confident=True, starts=20
    )
    assert look(seen=Seen(warm=[20.0] * 4)).warm.known == "declared"


def test_a_scale_up_beyond_warm_places_reads_the_model_once_and_takes_a_cold_start():
    where = places(WARM, COMING)
    assert look(where=where).scale_up == ScaleUp(100, 150 + 60)
    assert look(replace(ASKED, scale_up=2), where=where).scale_up == ScaleUp(0, 60)
    assert look(where=where).missing_bytes == 7


def test_behavior_keeps_what_an_autoscaler_takes():
    assert look().scale_up_period_s == 600
    assert look(where=places(WARM)).scale_up_period_s == 60
    assert look().stabilization_s == 630
    slow = replace(ASKED, warm_s=0, cold_s=86400)
    assert (look(slow).scale_up_period_s, look(slow).stabilization_s) == (1800, 3600)
    assert look(slow, where=places(WARM)).scale_up_period_s == 1


def test_what_loads_is_not_taken_back_before_it_has_served():
    burst = [Sample(0, 0), Sample(5, 9), Sample(10, 0), Sample(400, 0)]
    loading = [Starting(warm=False, age_s=400)] * 3
    assert look(starting=loading, samples=burst).recommended == 3
    assert look(starting=loading * 3, samples=burst).recommended == 5  # that many came for it
    assert look(starting=loading[:1], pending=1, samples=burst).recommended == 2
    assert look(ready=3, samples=burst).recommended == 0
    later = [*burst, Sample(1000, 0)]  # it is overdue: its demand has gone elsewhere
    assert look(starting=loading, samples=later).recommended == 0


@pytest.mark.parametrize("gone", [0, 3])
def test_starts_that_were_abandoned_are_told(gone):
    assert look(seen=Seen(abandoned=gone)).abandoned == gone


@given(st.lists(st.floats(0, 1e4), max_size=30), st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_ninetieth_percentile_is_never_below_the_median(seen, declared_s, rest_s):
    lead = lead_of(seen, None, declared_s, rest_s)
    assert lead.p50_s <= lead.p90_s


@given(st.floats(0, 1000), st.integers(0, 40), st.integers(0, 8))
def test_more_warm_places_never_ask_for_more_replicas(rate, ready, warm):
    samples = [Sample(index, rate) for index in range(30)]
    fewer = look(where=places(*[WARM] * warm), ready=ready, samples=samples)
    more = look(where=places(*[WARM] * (warm + 1)), ready=ready, samples=samples)
    assert fewer.recommended is not None
    assert more.recommended is not None
    assert more.recommended <= fewer.recommended
