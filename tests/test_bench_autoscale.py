"""The autoscaling study's world does what it says, on days small enough to work out by hand."""

import pytest

from bench.autoscale.scalers import DOWN_S, OnRequests, Recommended
from bench.autoscale.study import COSTS
from bench.autoscale.traffic import SHAPES, arrivals
from bench.autoscale.world import CARRIES, Replica, Seen, Times, World


class Fixed:
    """As many replicas as it was told to have."""

    def __init__(self, replicas, kept=0):
        self.replicas, self.kept = replicas, kept

    def decide(self, _):
        return self.replicas, self.kept


EXACT = Times(warm_s=45, cold_s=420, node_s=120, spread=0.0)


def day(arrivals_, scaler):
    return World(arrivals_, scaler, EXACT, seed=1).run()


def test_what_fits_is_never_late_and_costs_what_it_takes():
    outcome = day([4] * 3600, Fixed(3))
    assert (outcome.late, outcome.episodes, outcome.requests) == (0, [], 4 * 3600)
    assert outcome.replica_s == 3 * 3600
    assert outcome.cold_starts == 0


def test_a_cold_start_takes_its_node_the_fetch_and_the_load():
    """Half of what comes cannot be served until the second replica is there after 540 s."""
    outcome = day([1] * 60 + [4] * 540 + [0] * 3000, Fixed(2))
    assert outcome.cold_starts == 1
    queued = 540 * (4 - CARRIES)
    assert outcome.late > queued
    (episode,) = outcome.episodes
    assert 540 < episode < 540 + queued / 2


def test_a_node_kept_warm_saves_the_fetch():
    cold = day([1] * 60 + [4] * 1800, Fixed(2))
    outcome = World([1] * 60 + [4] * 1800, Fixed(2), EXACT, seed=1)
    outcome._free.append(0.0)
    warm = outcome.run()
    assert warm.cold_starts == 0
    assert warm.late < cold.late / 5


def test_an_idle_node_is_given_back_unless_it_is_kept():
    class Once:
        def __init__(self, kept):
            self.kept = kept

        def decide(self, seen):
            return (2 if seen.now_s < 600 else 1), self.kept

    gone, kept = day([1] * 7200, Once(0)), day([1] * 7200, Once(1))
    assert gone.node_s - gone.replica_s == pytest.approx(600, abs=30)
    assert kept.node_s - kept.replica_s > 6000


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_repeats_a_day(shape):
    assert arrivals(shape, 1, 3600) == arrivals(shape, 1, 3600)
    assert arrivals(shape, 1, 3600) != arrivals(shape, 2, 3600)


def test_steady_demand_has_what_it_takes_from_either():
    for scaler in (OnRequests(), Recommended(keep_warm=True, costs=COSTS)):
        outcome = day([10] * 7200, scaler)
        assert outcome.late == 0
        assert outcome.most_replicas <= 11


def test_a_wish_for_more_keeps_replicas_until_its_window_is_over():
    """An autoscaler remembers every wish, not only those for fewer."""
    scaler = OnRequests()

    def decided(now_s, in_flight, replicas):
        running = [Replica(n, True, 0.0, 0.0, ready=True) for n in range(replicas)]
        return scaler.decide(Seen(now_s, 0, 0.0, in_flight, running, 0, 0, {}))[0]

    assert decided(0.0, 10_000.0, 10) == 20
    assert decided(15.0, 0.0, 20) == 20
    assert decided(float(DOWN_S), 0.0, 20) == 20
    assert decided(DOWN_S + 1.0, 0.0, 20) == 0
