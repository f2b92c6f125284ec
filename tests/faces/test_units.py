"""Numbers as people read them."""

from __future__ import annotations

import pytest

from modelcache.config import parse_size
from modelcache.faces import units


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345, "12.3 kB"),
        (140_000_000_000, "140 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (3e18, "3000 PB"),
    ],
)
def test_sizes_have_decimal_prefixes_and_at_most_one_digit_after_the_point(size_bytes, text):
    assert units.size(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(999_999, "1.0 MB"), (999_950, "1.0 MB"), (99_960, "100 kB"), (999_999_999, "1.0 GB")],
)
def test_a_size_that_rounds_up_to_the_next_prefix_takes_it(size_bytes, text):
    assert units.size(size_bytes) == text


@pytest.mark.parametrize("size_bytes", [0, 7, 999, 1000, 2_500_000, 140_000_000_000])
def test_what_is_printed_can_be_given_as_a_setting(size_bytes):
    assert parse_size(units.size(size_bytes)) == size_bytes


def test_a_rate_is_a_size_a_second():
    assert units.rate(1_234_000_000) == "1.2 GB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.85, "850 ms"),
        (0.9999, "1.0 s"),
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.99, "1m 00s"),
        (185, "3m 05s"),
        (3599.7, "1h 00m"),
        (7800, "2h 10m"),
        (86399.9, "1d 0h"),
        (273_600, "3d 4h"),
    ],
)
def test_durations_carry_over_into_the_next_unit(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_is_singular(number, text):
    assert units.count(number, "file") == text
