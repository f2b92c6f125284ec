"""What a node knows of how fast its sources are."""

from modelcache.agent.measuring import ALL_ORIGINS, DISK, ORIGINS_MAX, PEERS, Measuring

S3, WEB = "s3://bucket", "https://host"


def test_bytes_of_transfers_that_run_together_are_one_links():
    known = Measuring()
    for tenth in range(31):
        now_s = tenth / 10
        known.moved("a", {"s3://bucket/m": 10 * tenth, "peer:n2": 40 * tenth}, now_s)
        known.moved("b", {"https://host/x?token=1": 20 * tenth}, now_s)
    assert round(known.bytes_s(S3) or 0) == 100
    assert round(known.bytes_s(WEB) or 0) == 200
    assert round(known.bytes_s(ALL_ORIGINS) or 0) == 300
    assert round(known.bytes_s(PEERS) or 0) == 400
    assert known.bytes_s(DISK) is None


def test_what_came_before_and_time_at_rest_say_nothing():
    known = Measuring()
    known.moved("a", {"s3://bucket/m": 1 << 40}, 0.0)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 50}, 0.5)
    known.rests("a", 0.5)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 50}, 100.0)
    known.moved("a", {"s3://bucket/m": (1 << 40) + 150}, 101.0)
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
    assert known.bytes_s(f"s3://bucket-{3 * ORIGINS_MAX - 1}") is None
