"""Which models go when room is needed."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.manifests import BlobId, ModelId
from modelcache.store.eviction import Candidate, freed_bytes, plan

NOW_S = 1e6
GB = 10**9


def model(name, blobs, *, age_s=1000.0, rate_bytes_s=1e8, leased=False):
    sizes = {BlobId(blob): size for blob, size in blobs.items()}
    return Candidate(ModelId(name), sizes, NOW_S - age_s, rate_bytes_s, leased)


def evict(*models, need_bytes, protected=()):
    return plan(models, need_bytes=need_bytes, now_s=NOW_S, protected=map(BlobId, protected))


def test_without_need_nothing_goes():
    assert evict(model("a", {"x": GB}), need_bytes=0) == []
    assert evict(model("a", {"x": GB}), need_bytes=-5) == []


def test_of_two_alike_the_one_that_was_used_longer_ago_goes():
    old, new = model("old", {"x": GB}, age_s=500), model("new", {"y": GB}, age_s=400)
    assert evict(new, old, need_bytes=1) == ["old"]


def test_of_two_of_one_age_the_one_that_is_quicker_to_fetch_again_goes():
    far = model("far", {"x": GB}, rate_bytes_s=1e7)
    near = model("near", {"y": GB}, rate_bytes_s=1e9)
    assert evict(far, near, need_bytes=1) == ["near"]


def test_a_dear_model_goes_before_a_cheap_one_when_it_is_old_enough():
    dear = model("dear", {"x": GB}, rate_bytes_s=1e7, age_s=20_000)
    cheap = model("cheap", {"y": GB}, rate_bytes_s=1e8, age_s=1000)
    assert evict(cheap, dear, need_bytes=1) == ["dear"]


def test_a_model_used_this_instant_or_in_the_future_may_still_go():
    assert evict(model("a", {"x": GB}, age_s=0), need_bytes=1) == ["a"]
    assert evict(model("a", {"x": GB}, age_s=-1e9), need_bytes=1) == ["a"]


def test_as_many_go_as_are_needed():
    models = [model(f"m{n}", {f"b{n}": GB}, age_s=1000 - n) for n in range(5)]
    assert evict(*models, need_bytes=2 * GB + 1) == ["m0", "m1", "m2"]


def test_when_the_need_is_out_of_reach_all_that_may_go():
    models = [model("a", {"x": GB}), model("b", {"y": GB}, leased=True)]
    assert evict(*models, need_bytes=9 * GB) == ["a"]


def test_a_leased_model_never_goes_and_shields_what_it_shares():
    leased = model("leased", {"x": GB}, age_s=1e5, leased=True)
    sharing = model("sharing", {"x": GB, "y": 5}, age_s=1e5)
    same = model("same", {"x": GB}, age_s=1e5)
    assert evict(leased, sharing, same, need_bytes=GB) == ["sharing"]


def test_a_protected_blob_frees_nothing():
    assert evict(model("a", {"x": GB}), need_bytes=1, protected=["x"]) == []


def test_models_that_share_all_their_blobs_go_together():
    twins = [model("a", {"x": GB}), model("b", {"x": GB})]
    assert sorted(evict(*twins, need_bytes=1)) == ["a", "b"]


def test_whoever_turns_out_not_to_be_needed_is_spared():
    small = model("small", {"x": 10}, age_s=5000)
    large = model("large", {"y": 100}, age_s=1000)
    assert evict(small, large, need_bytes=100) == ["large"]


def test_a_model_of_which_nothing_is_here_does_not_go():
    assert evict(model("empty", {"x": 0}), model("none", {}), need_bytes=1) == []


def test_what_is_freed_is_what_nobody_else_holds():
    a, b = model("a", {"x": 1, "y": 20}), model("b", {"y": 20, "z": 300})
    assert freed_bytes([a, b], ["a"]) == 1
    assert freed_bytes([a, b], ["a", "b"]) == 321
    assert freed_bytes([a, b], ["a", "b"], [BlobId("z")]) == 21


# For any models at all

NAMES = [BlobId(name) for name in "uvwxyz"]


@st.composite
def stores(draw):
    sizes = draw(st.fixed_dictionaries({name: st.integers(0, 100) for name in NAMES}))
    models = [
        Candidate(
            ModelId(f"m{number}"),
            {name: sizes[name] for name in draw(st.sets(st.sampled_from(NAMES)))},
            draw(st.floats(0, 2 * NOW_S)),
            draw(st.sampled_from([0.0, 1.0, 1e8, 1e10])),
            draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return models, draw(st.sets(st.sampled_from(NAMES), max_size=2)), draw(st.integers(-5, 700))


@given(stores())
def test_the_need_is_met_whenever_it_can_be(found):
    models, protected, need = found
    chosen = plan(models, need_bytes=need, now_s=NOW_S, protected=protected)
    free = [item.model_id for item in models if not item.leased]
    reachable = freed_bytes(models, free, protected)
    assert freed_bytes(models, chosen, protected) >= min(need, reachable)


@given(stores())
def test_no_leased_model_is_named_and_none_twice(found):
    models, protected, need = found
    chosen = plan(models, need_bytes=need, now_s=NOW_S, protected=protected)
    assert len(set(chosen)) == len(chosen)
    assert not {item.model_id for item in models if item.leased} & set(chosen)


@given(stores())
def test_nobody_goes_in_vain(found):
    """Without any one of the chosen, less is freed than is needed."""
    models, protected, need = found
    chosen = plan(models, need_bytes=need, now_s=NOW_S, protected=protected)
    freed = freed_bytes(models, chosen, protected)
    for fewer in combinations(chosen, max(0, len(chosen) - 1)):
        if len(fewer) < len(chosen):
            assert freed_bytes(models, fewer, protected) < min(need, freed)


@given(stores())
def test_the_order_in_which_models_are_told_does_not_matter(found):
    models, protected, need = found
    forwards = plan(models, need_bytes=need, now_s=NOW_S, protected=protected)
    assert plan(models[::-1], need_bytes=need, now_s=NOW_S, protected=protected) == forwards
