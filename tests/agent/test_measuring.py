"""What a node knows of how fast its sources are."""

from __future__ import annotations

from collections.abc import Callable

from modelcache.agent.measuring import (
    ALL_ORIGINS,
    DISK,
    MIXED,
    ORIGINS_MAX,
    PEERS,
    RAMP_S,
    TAIL_S,
    WINDOW_S,
    Measuring,
)

S3, WEB = "s3://bucket", "https://host"
Sources = Callable[[float], dict[str, float]]


def run(known: Measuring, sources: Sources, seconds: float, *, at_s: float = 0.0) -> None:
    """One transfer, which tells ten times a second what it has got so far."""
    for tenth in range(round(seconds * 10) + 1):
        now_s = tenth / 10
        told = {name: int(received) for name, received in sources(now_s).items()}
        known.moved("a", told, at_s + now_s)
    known.rests("a", at_s + seconds)


def test_bytes_of_transfers_that_run_together_are_one_links():
    known = Measuring()
    for tenth in range(91):
        known.moved("a", {"s3://bucket/m": 10 * tenth}, tenth / 10)
        known.moved("b", {"s3://bucket/n?token=1": 20 * tenth}, tenth / 10)
    assert round(known.bytes_s(S3) or 0) == round(known.bytes_s(ALL_ORIGINS) or 0) == 300
    assert known.bytes_s(PEERS) is None
    assert known.bytes_s(DISK) is None


def test_a_source_is_known_where_it_gave_nearly_all():
    known = Measuring()
    run(known, lambda s: {"s3://bucket/m": 100 * s, "peer:n2": 1000 * s}, 9)
    assert known.bytes_s(ALL_ORIGINS) is None  # an origin beside peers is read slowly on purpose
    assert round(known.bytes_s(MIXED) or 0) == 1100
    run(known, lambda s: {"https://host/x": s, "peer:n2": 700 * s, "peer:n3": 300 * s}, 9, at_s=20)
    assert round(known.bytes_s(PEERS) or 0) == 1001
    assert known.bytes_s(WEB) is None


def test_beginnings_and_ends_of_transfers_say_nothing_of_their_sources():
    def received(at_s: float) -> dict[str, float]:
        """Slow, then 1000 a second, then slow."""
        full_s = min(max(0.0, at_s - RAMP_S), 6.0)
        return {"s3://bucket/m": 10 * at_s + 1000 * full_s}

    known = Measuring()
    run(known, received, RAMP_S + 6 + TAIL_S)
    assert 1000 <= (known.bytes_s(S3) or 0) <= 1020


def test_of_a_short_transfer_all_of_it_is_taken():
    known = Measuring()
    run(known, lambda s: {"s3://bucket/m": 100 * s}, 2 * WINDOW_S)
    assert round(known.bytes_s(S3) or 0) == 100


def test_what_came_before_and_time_at_rest_say_nothing():
    known = Measuring()
    known.moved("a", {"s3://bucket/m": 1 << 40}, 0.0)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 50}, 0.5)
    known.rests("a", 0.5)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 50}, 100.0)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 150}, 101.0)
    known.rests("a", 101.0)
    assert known.bytes_s(S3) == 100


def test_a_moment_that_is_too_short_says_nothing():
    known = Measuring()
    known.moved("a", {"s3://bucket/m": 0}, 0.0)
    known.moved("a", {"s3://bucket/m": 9999}, 0.1)
    known.rests("a", 0.1)
    known.rests("never began", 0.2)
    assert known.bytes_s(S3) is None


def test_writers_that_write_at_once_are_one_disk():
    known = Measuring()
    known.wrote(1000, 8.0, 4)
    assert known.bytes_s(DISK) == 500


def test_origins_without_end_are_told_together():
    known = Measuring()
    for number in range(3 * ORIGINS_MAX):
        place = f"s3://bucket-{number}/m"
        known.moved("a", {place: 0}, 2.0 * number)
        known.moved("a", {place: 100}, 2.0 * number + 1)
        known.rests("a", 2.0 * number + 1)
    assert known.bytes_s(ALL_ORIGINS) == 100
    assert known.bytes_s("s3://bucket-0") == 100
    assert known.bytes_s(f"s3://bucket-{3 * ORIGINS_MAX - 1}") is None


def test_what_was_measured_can_be_kept():
    known, again = Measuring(), Measuring()
    run(known, lambda s: {"s3://bucket/m": 100 * s}, 9)
    again.take(known.to_json())
    assert again.names() == known.names() == [ALL_ORIGINS, S3]
    assert again.bytes_s(S3) == known.bytes_s(S3)
