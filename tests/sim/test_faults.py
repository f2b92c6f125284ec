from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.sim import Faults, Throttling, World
from modelcache.sim.faults import Fates
from tests.sim.scenes import small, troubled, whole


def test_no_node_has_two_fates():
    faults = Faults(deaths=3, stragglers=3, late=3, liars=3)
    fates = Fates.draw(faults, range(16), 0.5, random.Random(1))
    troubled_nodes = [*fates.deaths, *fates.stragglers, *fates.liars]
    late = [node for node, at_s in fates.starts.items() if at_s > 0.5]
    assert len(late) == 3
    assert len({*troubled_nodes, *late}) == 12
    assert 0 not in {*troubled_nodes, *late}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("refresh_s", [0.0, 2.0])
def test_an_owner_that_dies_midway_is_replaced(silent, refresh_s):
    scenario = troubled(8, seed=1, deaths=1, silent=silent)
    scenario = small(8, seed=1, faults=scenario.faults, refresh_s=refresh_s, stall_s=5.0)
    outcome = whole(scenario)
    assert sum(node.dead for node in outcome.nodes) == 1
    assert outcome.origin_bytes < 3 * scenario.model.size_bytes


def test_connections_to_a_dead_node_break():
    outcome = whole(troubled(6, seed=2, deaths=2))
    assert outcome.failures.get("connection_reset", 0) > 0


def test_nodes_that_join_late_take_from_the_others():
    scenario = troubled(6, seed=3, late=3)
    outcome = whole(scenario)
    assert outcome.origin_bytes < 2 * scenario.model.size_bytes
    late = [node for node in outcome.nodes if node.started_s > 0.5]
    assert len(late) == 3
    assert all(node.from_peers > node.from_origin for node in late)


def test_a_straggler_does_not_hold_up_the_others():
    scenario = troubled(8, seed=4, stragglers=1)
    world = World(scenario)
    world.run()
    (slow,) = world.fates.stragglers
    alone_s = scenario.model.size_bytes / (scenario.node.down * scenario.faults.straggler_factor)
    others = [node.finished_s for number, node in enumerate(world.nodes) if number != slow]
    assert all(ready_s is not None and ready_s < alone_s for ready_s in others)


def test_a_lying_peer_is_found_and_everybody_ends_with_the_origins_bytes():
    world = World(troubled(6, seed=5, liars=1, lie_share=0.3))
    world.run()
    outcome = world.outcome()
    assert outcome.whole()
    assert outcome.lies_found > 0
    assert outcome.audits > 0
    assert not any(copy.wrong for node in world.nodes for copy in node.copies.values())


def test_an_origin_that_throttles_is_read_again_later():
    throttling = (Throttling(0.5, 3.0, share=0.5, retry_after_s=1.0),)
    outcome = whole(small(4, seed=6, faults=Faults(throttling=throttling)))
    assert outcome.refused_by_origin > 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    nodes=st.integers(2, 7),
    holders=st.integers(0, 2),
    deaths=st.integers(0, 2),
    stragglers=st.integers(0, 2),
    late=st.integers(0, 2),
    liars=st.integers(0, 2),
    silent=st.booleans(),
    throttled=st.booleans(),
    refresh_s=st.sampled_from((0.0, 2.0)),
)
def test_whatever_goes_wrong_everybody_ends_complete(  # noqa: PLR0917 - drawn by name
    seed, nodes, holders, deaths, stragglers, late, liars, silent, throttled, refresh_s
):
    throttling = (Throttling(1.0, 3.0),) if throttled else ()
    faults = troubled(
        nodes,
        seed=seed,
        deaths=deaths,
        stragglers=stragglers,
        late=late,
        liars=liars,
        silent=silent,
        throttling=throttling,
    ).faults
    whole(
        small(
            nodes + holders,
            seed=seed,
            holders=holders,
            faults=faults,
            refresh_s=refresh_s,
            stall_s=5.0,
        )
    )
