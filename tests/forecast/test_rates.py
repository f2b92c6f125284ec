"""How fast a source is held to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.forecast.rates import CHANGE_MOMENTS, MOMENTS_MAX, Rate


def rate(*bytes_s: float, seconds: float = 1.0) -> Rate:
    found = Rate()
    for each in bytes_s:
        found.observe(each * seconds, seconds)
    return found


def test_nothing_seen_is_nothing_known():
    found = Rate()
    found.observe(0, 1)
    found.observe(5, 0)
    assert found.bytes_s is None


def test_a_stalled_and_a_lucky_moment_do_not_count():
    assert rate(100, 101, 99, 1, 100, 5000, 100).bytes_s == pytest.approx(100, rel=0.02)


def test_a_link_that_has_changed_is_believed_after_a_few_moments():
    found = rate(*[100.0] * 50)
    for _ in range(CHANGE_MOMENTS - 1):
        found.observe(30, 1)
    assert found.bytes_s == 100
    found.observe(30, 1)
    assert found.bytes_s == 30


def test_moments_that_only_scatter_are_no_change():
    assert rate(*[100.0] * 10, 20, 90, 300, 40).bytes_s == pytest.approx(100, rel=0.1)


def test_a_drift_below_the_threshold_is_followed_all_the_same():
    assert rate(*[100.0] * 40, *[85.0] * 40).bytes_s == 85


def test_long_moments_weigh_more_than_short_ones():
    found = Rate()
    found.observe(100 * 10, 10)
    for _ in range(5):
        found.observe(50 * 0.1, 0.1)
    assert found.bytes_s == 100


moments = st.lists(
    st.tuples(st.floats(1, 1e12), st.floats(0.1, 100)), min_size=1, max_size=2 * MOMENTS_MAX
)


@given(moments)
def test_it_stays_between_what_was_seen_and_outlives_being_written_down(seen):
    found = Rate()
    for bytes_s, seconds in seen:
        found.observe(bytes_s * seconds, seconds)
    known = found.bytes_s
    assert known is not None
    assert min(b for b, _ in seen) * 0.999 <= known <= max(b for b, _ in seen) * 1.001
    assert len(list(found)) <= MOMENTS_MAX
