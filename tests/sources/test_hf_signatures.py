"""How long a signed address is good, read from its query."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from modelcache.sources.hf.signatures import MARGIN_S, good_for_s

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
EPOCH_S = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("query", "left_s"),
    [
        ("X-Amz-Date=20260301T115500Z&X-Amz-Expires=3600&X-Amz-Signature=s", 3300),
        ("x-amz-expires=600&x-amz-date=20260301T120000Z", 600),
        ("X-Goog-Date=20260301T120000Z&X-Goog-Expires=900", 900),
        (f"Expires={EPOCH_S + 120}&Policy=p&Signature=s&Key-Pair-Id=k", 120),
        (f"AWSAccessKeyId=k&Expires={EPOCH_S + 60}&Signature=s", 60),
        ("sv=2024&se=2026-03-01T13%3A00%3A00Z&sig=s", 3600),
    ],
)
def test_what_is_left_of_a_signature_less_a_margin(query, left_s):
    assert good_for_s(query, NOW) == left_s - MARGIN_S


def test_one_that_is_over_is_good_for_nothing():
    assert good_for_s(f"Expires={EPOCH_S - 5}", NOW) == 0
    assert good_for_s("X-Amz-Date=20260301T115500Z&X-Amz-Expires=60", NOW) == 0


@pytest.mark.parametrize(
    "query",
    [
        *("", "etag=%22abc%22", "Expires=never", "Expires=-1", "Expires=" + "9" * 400),
        *("X-Amz-Expires=60", "X-Amz-Date=yesterday&X-Amz-Expires=60", "se=2026-03-01T13:00:00Z"),
    ],
)
def test_where_nothing_tells_nothing_is_claimed(query):
    assert good_for_s(query, NOW) is None
