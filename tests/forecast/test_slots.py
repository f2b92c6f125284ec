"""Where replicas would start warm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.forecast.slots import (
    Held,
    Place,
    Ready,
    best_ready,
    jointly_packed,
    warm_nodes,
    warm_slots,
)

WARM, PART = Held(warm=True), Held(warm=False, missing_bytes=7)


def test_slots_are_whole_replicas_on_schedulable_warm_nodes():
    places = [
        Place("a", 7, models={"m": WARM}),
        Place("b", 3, models={"m": WARM}),
        Place("c", 8, schedulable=False, models={"m": WARM}),
        Place("d", 8, models={"m": PART}),
        Place("e", 8),
    ]
    assert warm_nodes(places, "m") == 3
    assert warm_slots(places, "m", 2) == 4
    assert warm_slots(places, "unknown", 2) == 0


def test_models_that_share_nodes_do_not_both_count_them():
    places = [Place("a", 8, models={"m": WARM, "n": WARM})]
    assert warm_slots(places, "m", 4) + warm_slots(places, "n", 2) == 6
    assert jointly_packed(places, {"m": 4, "n": 2}) == {"m": 1, "n": 2}


models = st.dictionaries(st.sampled_from("mno"), st.just(WARM))
several = st.lists(st.tuples(st.integers(0, 8), st.booleans(), models), max_size=6).map(
    lambda found: [Place(str(i), gpus, ok, held) for i, (gpus, ok, held) in enumerate(found)]
)


@given(several, st.dictionaries(st.sampled_from("mno"), st.integers(1, 8)))
def test_what_is_packed_fits_in_the_gpus_and_leaves_no_room(places, gpus):
    packed = jointly_packed(places, gpus)
    used = sum(packed[model] * needed for model, needed in gpus.items())
    assert used <= sum(place.free_gpus for place in places if place.schedulable)
    for model, needed in gpus.items():
        assert packed[model] <= warm_slots(places, model, needed)
    if len(gpus) == 1:
        (model,) = gpus
        assert packed[model] == warm_slots(places, model, gpus[model])


def test_the_best_node_is_one_that_takes_pods():
    places = [
        Place("a", models={"m": Held(False, 1, Ready(40, 60))}),
        Place("b", models={"m": Held(False, 1, Ready(20, 30, confident=True))}),
        Place("c", schedulable=False, models={"m": Held(True, 0, Ready(1, 2))}),
        Place("d", models={"m": WARM}),
    ]
    assert best_ready(places, "m") == Ready(20, 30, confident=True)
    assert best_ready(places, "other") is None


def test_a_replica_without_gpus_is_refused():
    with pytest.raises(UsageError):
        warm_slots([], "m", 0)
    with pytest.raises(UsageError):
        jointly_packed([], {"m": 0})
