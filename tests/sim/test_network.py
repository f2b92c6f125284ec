from __future__ import annotations

import random
from math import inf

import pytest

from modelcache.sim.clock import Clock
from modelcache.sim.network import FREE, OVER, Flow, Link, Network
from tests.sim.fairness import max_min

MB = 1_000_000
FOREVER_BYTES = 10**15


def ignore(_: object) -> None:
    """For flows that are only looked at."""


def run(clock: Clock) -> None:
    """Until nothing is left to happen."""
    while clock.step():
        pass


def some_flows(seed: int) -> tuple[list[Flow], list[Link]]:
    """Up to 60 endless flows between up to 12 nodes of different rates."""
    chance = random.Random(seed)
    network = Network(Clock())
    count = chance.randint(2, 12)
    ups = [Link(f"up {i}", chance.choice((300, 1000, 2000, 4000)) * MB) for i in range(count)]
    downs = [Link(f"down {i}", chance.choice((1000, 2000, 3000)) * MB) for i in range(count)]
    flows = [
        network.start(
            (chance.choice(ups), chance.choice(downs)),
            FOREVER_BYTES,
            ignore,
            None,
            cap=chance.choice((inf, 60 * MB, 300 * MB)),
        )
        for _ in range(chance.randint(1, 60))
    ]
    return flows, ups + downs


@pytest.mark.parametrize("seed", range(60))
def test_rates_are_close_to_max_min_fair(seed):
    flows, links = some_flows(seed)
    fair = max_min(flows)
    assert 0.96 < sum(flow.rate for flow in flows) / sum(fair.values()) < 1 + OVER + 1e-9
    ratios = [flow.rate / fair[flow] for flow in flows]
    assert all(0.7 < ratio < 1.3 for ratio in ratios)
    assert sum(not 0.9 < ratio < 1.1 for ratio in ratios) <= 0.1 * len(ratios)
    for link in links:
        assert sum(flow.rate for flow in link.flows) <= link.capacity * (1 + OVER) + 1


def test_a_swarm_of_flows_that_come_and_go_stays_close_to_max_min_fair():
    chance = random.Random(7)
    clock = Clock()
    network = Network(clock)
    nodes = 16
    ups = [Link(f"up {i}", 3000 * MB) for i in range(nodes)]
    downs = [Link(f"down {i}", 3000 * MB) for i in range(nodes)]
    ratios: list[float] = []
    arrived = 0

    def again(node: int) -> None:
        nonlocal arrived
        arrived += 1
        if arrived % 100 == 0:
            flows = [flow for link in downs for flow in link.flows]
            ratios.append(sum(flow.rate for flow in flows) / sum(max_min(flows).values()))
        network.start((chance.choice(ups), downs[node]), 64 * MB, again, node)

    for node in range(nodes):
        for _ in range(20):
            size_bytes = chance.randint(MB, 64 * MB)
            network.start((chance.choice(ups), downs[node]), size_bytes, again, node)
    while arrived < 3000:
        clock.step()
    assert all(1 - FREE < ratio < 1 + OVER for ratio in ratios)
    for link in ups + downs:
        assert link.carried <= link.capacity * clock.now_s * (1 + OVER)


def test_equal_flows_over_one_link_end_together_and_on_time():
    clock = Clock()
    network = Network(clock)
    link = Link("link", 100 * MB)
    ends: list[float] = []
    for _ in range(4):
        network.start((link,), 50 * MB, lambda _: ends.append(clock.now_s), None)
    run(clock)
    assert ends == pytest.approx([2.0] * 4)
    assert link.carried == 4 * 50 * MB


def test_what_a_slow_receiver_leaves_goes_to_the_others():
    network = Network(Clock())
    up = Link("up", 100 * MB)
    slow, fast = Link("slow", 10 * MB), Link("fast", 1000 * MB)
    held = network.start((up, slow), FOREVER_BYTES, ignore, None)
    free = network.start((up, fast), FOREVER_BYTES, ignore, None)
    assert held.rate == pytest.approx(10 * MB)
    assert free.rate == pytest.approx(90 * MB)


def test_a_flow_speeds_up_when_another_ends():
    clock = Clock()
    network = Network(clock)
    link = Link("link", 100 * MB)
    ends: list[tuple[str, float]] = []
    for name, size_bytes in (("short", 50 * MB), ("long", 150 * MB)):
        network.start((link,), size_bytes, lambda name: ends.append((name, clock.now_s)), name)
    run(clock)
    assert ends == [("short", pytest.approx(1.0)), ("long", pytest.approx(2.0))]


@pytest.mark.parametrize(("capacity", "seconds"), [(50 * MB, 5 + 10), (200 * MB, 5 + 2.5)])
def test_a_link_that_changes_takes_its_flows_with_it(capacity: float, seconds: float):
    clock = Clock()
    network, link = Network(clock), Link("link", 100 * MB)
    ended: list[float] = []
    for _ in range(4):
        network.start((link,), 250 * MB, lambda _: ended.append(clock.now_s), None)
    clock.at(5.0, lambda _: network.resize(link, capacity), None)
    run(clock)
    assert ended == pytest.approx([seconds] * 4, rel=0.01)


def test_a_stopped_flow_says_what_came_and_never_arrives():
    clock = Clock()
    network = Network(clock)
    link = Link("link", 100 * MB)
    flow = network.start((link,), 100 * MB, lambda _: pytest.fail("it arrived"), None)
    clock.after(0.25, lambda _: None, None)
    clock.step()
    assert network.stop(flow) == pytest.approx(25 * MB)
    assert network.stop(flow) == pytest.approx(25 * MB)
    run(clock)
    assert not link.flows
    assert link.carried == pytest.approx(25 * MB)


def test_a_connection_is_never_faster_than_its_cap():
    clock = Clock()
    network = Network(clock)
    ends: list[float] = []
    network.start(
        (Link("link", 100 * MB),), 10 * MB, lambda _: ends.append(clock.now_s), None, cap=1.0 * MB
    )
    run(clock)
    assert ends == [pytest.approx(10.0)]


def test_things_due_at_one_moment_happen_in_the_order_of_asking():
    clock = Clock()
    seen: list[str] = []
    clock.at(1.0, seen.append, "first")
    clock.at(0.5, seen.append, "before")
    clock.at(1.0, seen.append, "second")
    clock.at(-1.0, seen.append, "at once")
    run(clock)
    assert seen == ["at once", "before", "first", "second"]
    assert clock.now_s == 1.0


def test_flows_get_of_a_full_link_what_they_weigh():
    network = Network(Clock())
    link = Link("link", 100 * MB)
    heavy, light, capped = (
        network.start((link,), FOREVER_BYTES, ignore, None, weight=weight, cap=cap)
        for weight, cap in ((6.0, inf), (2.0, inf), (8.0, 20 * MB))
    )
    assert capped.rate == pytest.approx(20 * MB)
    assert heavy.rate == pytest.approx(60 * MB)
    assert light.rate == pytest.approx(20 * MB)
