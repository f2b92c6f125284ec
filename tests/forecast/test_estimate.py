"""How long a start should take."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.forecast.estimate import (
    FINISH_S,
    MOUNT_S,
    RESOLVE_S,
    Needs,
    Queued,
    Regime,
    Speeds,
    Tier,
    ahead_of,
    network_s,
    parts_of,
    typical,
)

COLD = Needs(1000, 1000)
ORIGIN = Speeds(origin_bytes_s=100)


def test_what_a_node_has_decides_the_tier():
    assert COLD.tier is Tier.COLD
    assert Needs(1000, 400).tier is Tier.WARMING
    assert Needs(1000, 0).tier is Tier.WARM


def test_a_cold_system_does_not_know():
    assert parts_of(COLD, Speeds()) is None
    assert parts_of(COLD, Speeds(peer_bytes_s=100)) is None  # and no peer has it
    assert parts_of(Needs(1000, 0), Speeds()) is not None  # all is here


def test_declared_speeds_count_until_measured_ones_are_there():
    assert Speeds().or_else(ORIGIN) == ORIGIN
    assert Speeds(origin_bytes_s=7, mount_s=0.0).or_else(
        Speeds(origin_bytes_s=9, mount_s=1, finish_s=2)
    ) == Speeds(origin_bytes_s=7, mount_s=0.0, finish_s=2)


def test_the_slowest_of_origin_and_disk_sets_the_pace_and_parts_add_up():
    parts = parts_of(replace(COLD, ahead_bytes=500), replace(ORIGIN, disk_bytes_s=50))
    assert parts is not None
    assert (parts.fetch_s, parts.queue_s) == (20, 10)
    assert parts.stored_s == pytest.approx(30 + RESOLVE_S + FINISH_S)
    assert parts.ready_s == pytest.approx(parts.stored_s + MOUNT_S)
    assert parts.loaded_s() is None
    resolved = parts_of(replace(COLD, resolved=True), replace(ORIGIN, finish_s=0.0))
    assert resolved is not None
    assert resolved.stored_s == 10


def test_loading_follows_fetching_or_goes_on_beside_it():
    speeds = replace(ORIGIN, load_bytes_s=50, resolve_s=1, finish_s=2, mount_s=3)
    parts = parts_of(COLD, speeds)
    assert parts is not None
    assert parts.loaded_s() == 1 + 10 + 2 + 3 + 20
    assert parts.loaded_s(chunk_s=0.5) == 1 + 3 + 20 + 0.5


def test_a_holder_in_the_cell_gives_what_the_origin_need_not():
    speeds = Speeds(origin_bytes_s=10, peer_bytes_s=500)
    assert network_s(replace(COLD, holders=1), speeds) == 2
    assert network_s(replace(COLD, holders=1), replace(speeds, peer_bytes_s=None)) == 100


def test_nodes_that_fetch_together_read_the_origin_once():
    speeds = Speeds(origin_bytes_s=100, peer_bytes_s=1000)
    assert network_s(replace(COLD, fetchers=3), speeds) == 2.5
    assert network_s(replace(COLD, fetchers=99), speeds) == 1  # its own link's pace
    assert network_s(replace(COLD, fetchers=3), ORIGIN) == 10  # no faster than what was seen


def test_who_else_fetches_makes_another_case():
    assert COLD.regime is replace(COLD, busy=2).regime is Regime.ALONE
    assert replace(COLD, fetchers=1).regime is Regime.TOGETHER
    assert replace(COLD, holders=1).regime is Regime.HELD
    assert replace(COLD, holders=1, busy=1).regime is Regime.CROWDED
    assert replace(COLD, holders=1, fetchers=1).regime is Regime.CROWDED


def test_a_like_case_that_was_measured_counts_more_than_a_formula():
    speeds = Speeds(origin_bytes_s=100, peer_bytes_s=1000, mixed_bytes_s=500)
    assert network_s(replace(COLD, fetchers=3), speeds) == 2
    assert network_s(COLD, speeds) == 10
    assert network_s(replace(COLD, holders=1, fetchers=3), speeds) == 1
    seen = Speeds(mixed_bytes_s=500)  # nodes have only ever fetched together
    assert network_s(COLD, seen) == network_s(replace(COLD, holders=1), seen) == 2
    assert network_s(replace(COLD, fetchers=1), Speeds(peer_bytes_s=250)) == 4


def test_what_is_more_urgent_comes_first_and_what_is_as_urgent_shares():
    others = [Queued(5000, 90), Queued(5000, 60), Queued(300, 60), Queued(5000, 30)]
    assert ahead_of(1000, 60, others, at_once=8) == 5000 + 1000 + 300
    assert ahead_of(1000, 60, others, at_once=2) == 5000 + 5000 + 300  # it has to wait for a place
    assert ahead_of(1000, 95, others, at_once=8) == 0


def test_a_typical_duration_is_no_average():
    assert typical([]) is None
    assert typical([1, 1, 50]) == 1


amounts = st.integers(1, 1 << 50)


@given(amounts, amounts, st.integers(0, 100), st.integers(0, 100), st.floats(1, 1e12))
def test_more_to_fetch_never_takes_less(missing, more, holders, fetchers, rate):
    def seconds(missing_bytes: int) -> float:
        needs = Needs(1 << 60, missing_bytes, holders=holders, fetchers=fetchers)
        parts = parts_of(needs, Speeds(origin_bytes_s=rate, peer_bytes_s=3 * rate))
        assert parts is not None
        return parts.ready_s

    assert seconds(missing + more) >= seconds(missing) > 0
