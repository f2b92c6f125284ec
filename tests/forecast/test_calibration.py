"""Quantiles that come true as often as they say."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.forecast.calibration import (
    CONFIDENT_MIN,
    GROUP_MIN,
    STARTS_MAX,
    UNKNOWN_SPREAD,
    Promise,
    Score,
    Start,
)
from modelcache.forecast.estimate import Regime, Tier

P50, P90 = 0.5, 0.9


ALONE, HELD = Regime.ALONE, Regime.HELD


def start(
    ratio: float,
    *,
    model: str = "m",
    tier: Tier = Tier.COLD,
    regime: Regime = ALONE,
    finished: bool = True,
):
    return Start(Promise(model, tier, regime, 10.0, 10.0, 20.0), 10.0 * ratio, finished)


def score_of(*starts: Start) -> Score:
    score = Score()
    for each in starts:
        score.add(each)
    return score


def live(score: Score, ratios: list[float], model: str = "m") -> None:
    """Predict each start as the score then stands, and let it learn what came of it."""
    for ratio in ratios:
        factors = score.factors(model, Tier.COLD, ALONE)
        p50_s, p90_s = 10.0 * factors[P50], 10.0 * factors[P90]
        promise = Promise(model, Tier.COLD, ALONE, 10.0, p50_s, p90_s)
        score.add(Start(promise, 10.0 * ratio, finished=True))


def test_before_a_few_starts_have_told_the_spread_is_a_guess_and_nobody_is_confident():
    score = score_of(*[start(1.5)] * (GROUP_MIN - 1))
    assert score.factors("m", Tier.COLD, ALONE) == UNKNOWN_SPREAD
    assert not score.confident
    assert Score().coverage(P90) is None
    assert Score().error is None


def test_a_model_counts_for_itself_once_it_has_started_often_enough():
    score = score_of(*[start(1.0, model="other")] * 60, *[start(2.0)] * GROUP_MIN)
    assert score.factors("m", Tier.COLD, ALONE)[P50] == 2.0
    assert score.factors("unseen", Tier.COLD, ALONE)[P50] == 1.0
    assert score.factors("unseen", Tier.WARMING, ALONE)[P50] == 1.0
    assert score.factors("unseen", Tier.WARM, ALONE) == UNKNOWN_SPREAD


@pytest.mark.parametrize(
    ("longer", "shorter", "middle"), [(11, 11, 1.0), (15, 7, 1.0), (18, 4, 1.5), (4, 18, 0.8)]
)
def test_the_middle_moves_only_where_starts_say_clearly_that_it_is_wrong(
    longer: int, shorter: int, middle: float
):
    score = score_of(*[start(1.5)] * longer, *[start(0.8)] * shorter)
    factors = score.factors("m", Tier.COLD, ALONE)
    assert factors[P50] == middle
    assert factors[P90] >= middle


def test_what_was_wrong_long_ago_moves_nothing():
    score = score_of(*[start(2.0)] * 60, *[start(0.9), start(1.1)] * 16)
    assert score.factors("m", Tier.COLD, ALONE)[P50] == 1.0


def test_starts_from_another_regime_count_only_where_there_are_none_alike():
    score = score_of(*[start(1.0, regime=HELD)] * 60, *[start(2.0)] * GROUP_MIN)
    assert score.factors("m", Tier.COLD, HELD)[P50] == 1.0
    assert score.factors("unseen", Tier.COLD, ALONE)[P50] == 2.0
    assert score.factors("m", Tier.COLD, Regime.TOGETHER)[P50] == 1.0


def test_given_up_starts_lengthen_the_tail_that_dropping_them_would_hide():
    ready = [start(1.0)] * 16
    score = score_of(*ready, *[start(3.0, finished=False)] * 4, start(5.0))
    assert score.factors("m", Tier.COLD, ALONE)[P50] == 1.0
    assert score.factors("m", Tier.COLD, ALONE)[P90] == 5.0
    assert score_of(*ready, start(5.0)).factors("m", Tier.COLD, ALONE)[P90] == 1.0


def test_a_start_given_up_early_says_neither_yes_nor_no():
    early, late = start(0.1, finished=False), start(2.5, finished=False)
    assert score_of(start(1.0), early).coverage(P90) == 1.0
    assert score_of(start(1.0), late).coverage(P90) == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_quantiles_come_true_as_often_as_they_say_also_when_truth_moves_on(seed: int):
    source = random.Random(seed)
    score = Score()
    live(score, [source.lognormvariate(0.0, 0.3) for _ in range(150)])
    live(score, [source.lognormvariate(0.4, 0.5) for _ in range(STARTS_MAX)])
    covered = score.coverage(P90)
    assert covered is not None
    assert 0.85 <= covered <= 0.95
    assert score.confident
    middle = score.coverage(P50)
    assert middle is not None
    assert 0.4 <= middle <= 0.6


def test_who_is_right_too_seldom_is_not_confident():
    score = score_of(*[start(1.0)] * CONFIDENT_MIN, *[start(2.5)] * CONFIDENT_MIN)
    assert score.coverage(P90) == 0.5
    assert not score.confident


def test_the_error_is_the_median_share_of_the_truth():
    assert score_of(start(1.0), start(2.0), start(4.0)).error == 0.5


def test_starts_that_fetch_nothing_are_no_part_of_the_score():
    score = score_of(*[start(9.0, tier=Tier.WARM)] * 30)
    assert score.coverage(P90) is None
    assert score.factors("m", Tier.WARM, ALONE)[P50] == 9.0


ratios = st.floats(0.001, 1000)
starts = st.builds(start, ratios, finished=st.booleans(), tier=st.sampled_from(Tier))


@given(st.lists(starts, max_size=40))
def test_what_is_kept_is_what_was_known(known):
    score = score_of(*known)
    again = Score.from_json(json.loads(json.dumps(score.to_json())))
    assert again.to_json() == score.to_json()
    for level, factor in score.factors("m", Tier.COLD, ALONE).items():
        assert again.factors("m", Tier.COLD, ALONE)[level] == pytest.approx(factor, rel=1e-2)
        assert factor > 0
    low, high = (score.factors("m", Tier.COLD, ALONE)[level] for level in (P50, P90))
    assert low <= high


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"asked": [0.5], "starts": []},
        {"asked": [0.5, "x"], "starts": []},
        {"asked": [0.5, 0.9], "starts": [["m", "tepid", "held", 1, 1, 1, 1, True]]},
        {"asked": [0.5, 0.9], "starts": [["m", "cold", "held", 1, 1, -1, 1, True]]},
        {"asked": [0.5, 0.9], "starts": [["m", "cold", "held", 1, 1, float("nan"), 1, True]]},
        {"asked": [0.5, 0.9], "starts": [["m", "cold", "nobody", 1, 1, 1, 1, True]]},
        {"asked": [0.5, 0.9], "starts": [[]]},
    ],
)
def test_what_is_no_score_is_refused(damaged):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Score.from_json(damaged)
