from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from modelcache.sim import (
    ModelShape,
    NodeShape,
    OriginShape,
    Scenario,
    Way,
    World,
    alone_s,
    bound_s,
    cells_bound_s,
    cells_of,
    simulate,
)
from modelcache.sim.network import OVER
from tests.sim.scenes import MODEL, small, whole

TINY = ModelShape(blobs=2, blob_bytes=1000, chunk_bytes=100)


@pytest.mark.parametrize("way", list(Way))
def test_what_nodes_receive_is_what_others_sent(way):
    world = World(small(6, way=way))
    world.run()
    outcome = world.outcome()
    received = sum(node.from_peers for node in outcome.nodes)
    sent = sum(node.sent for node in outcome.nodes)
    assert received == pytest.approx(sent)
    assert sum(node.up.carried for node in world.nodes) == pytest.approx(sent)
    assert sum(node.down.carried for node in world.nodes) == pytest.approx(
        received + outcome.origin_bytes
    )
    assert world.origin.link.carried == pytest.approx(outcome.origin_bytes)
    wanted = 6 * world.scenario.model.size_bytes
    assert received + outcome.origin_bytes == pytest.approx(wanted + outcome.wasted_bytes)


@pytest.mark.parametrize("way", list(Way))
def test_no_link_carries_more_than_it_can(way):
    world = World(small(6, way=way))
    world.run()
    links = [world.origin.link, *(link for node in world.nodes for link in (node.up, node.down))]
    for link in links:
        assert link.carried <= link.capacity * world.clock.now_s * (1 + OVER)


@pytest.mark.parametrize("way", list(Way))
def test_nobody_is_faster_than_the_bound(way):
    scenario = small(8, way=way)
    assert whole(scenario).last_s > bound_s(scenario) * (1 - OVER)


def test_a_swarm_at_a_slow_origin_reads_it_about_once_and_ends_near_the_bound():
    scenario = small(8)
    outcome = whole(scenario)
    assert outcome.origin_bytes < 1.3 * scenario.model.size_bytes
    assert outcome.last_s < 2 * cells_bound_s(scenario)
    assert outcome.last_s < 0.5 * alone_s(scenario)


def test_without_peers_every_node_reads_the_origin():
    scenario = small(4, way=Way.ALONE)
    outcome = whole(scenario)
    assert outcome.origin_bytes == pytest.approx(4 * scenario.model.size_bytes)
    assert outcome.last_s == pytest.approx(alone_s(scenario), rel=0.2)


def test_a_single_seed_sends_everything_to_all_others():
    scenario = small(4, way=Way.SINGLE_SEED)
    outcome = whole(scenario)
    assert outcome.nodes[0].sent == pytest.approx(3 * scenario.model.size_bytes)
    assert outcome.origin_bytes == pytest.approx(scenario.model.size_bytes)


def test_random_choice_takes_from_all():
    outcome = whole(small(4, way=Way.RANDOM))
    assert all(node.sent > 0 for node in outcome.nodes)


@pytest.mark.parametrize("holders", [1, 2, 4])
def test_nodes_that_have_the_model_spare_the_origin(holders):
    scenario = small(8, holders=holders)
    outcome = whole(scenario)
    assert outcome.sent_by_holders > 0
    assert outcome.origin_bytes < 0.5 * scenario.model.size_bytes


def test_small_blobs_come_too():
    model = replace(MODEL, blobs=1, small_blobs=100)
    scenario = small(4, model=model)
    outcome = whole(scenario)
    came = outcome.origin_bytes + sum(node.from_peers for node in outcome.nodes)
    assert came == pytest.approx(4 * model.size_bytes + outcome.wasted_bytes)


def test_cells_exchange_nothing_with_each_other():
    world = World(Scenario(70, model=TINY, refresh_s=0))
    world.run()
    assert [len(cell) for cell in world.cells] == [35, 35]
    for node in world.nodes:
        mine = next(cell for cell in world.cells if node in cell)
        assert set(node.cell) == set(mine) - {node}


def test_zones_have_cells_of_their_own_and_links_between_them():
    scenario = small(8, zones=2, zone_rate=100e6, way=Way.RANDOM)
    world = World(scenario)
    world.run()
    links = [world.nodes[zone].zone_links for zone in (0, 1)]
    assert all(link is not None and link[0].carried > 0 for link in links)
    swarm = World(replace(scenario, way=Way.SWARM))
    swarm.run()
    assert len(swarm.cells) == 2
    assert all(link is None or link[0].carried == 0 for link in [swarm.nodes[0].zone_links])


def test_the_same_scenario_gives_the_same_outcome():
    assert simulate(small(5, seed=3)) == simulate(small(5, seed=3))


def test_another_seed_gives_another_outcome():
    assert simulate(small(5, seed=3)) != simulate(small(5, seed=4))


def test_hash_randomisation_changes_nothing():
    code = (
        "from tests.sim.scenes import troubled; from modelcache.sim import simulate;"
        "print(simulate(troubled(6, seed=5, deaths=1, stragglers=1, liars=1)))"
    )
    outcomes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outcomes) == 1


def test_a_run_beyond_its_horizon_names_its_seed():
    with pytest.raises(AssertionError, match="seed 11"):
        simulate(small(3, seed=11, horizon_s=1.0))


@pytest.mark.parametrize(
    ("nodes", "origin", "node", "expected_s"),
    [
        (1, 2.0, 1.0, 100.0),  # its own link
        (10, 0.5, 1.0, 200.0),  # the origin
        (10, 1.0, 0.25, 400.0),  # its own link again
    ],
)
def test_the_bound_is_the_fluid_one(nodes, origin, node, expected_s):
    model = ModelShape(blobs=1, blob_bytes=100)
    shape = NodeShape(up=node, down=node)
    scenario = Scenario(nodes, model=model, origin=OriginShape(rate=origin), node=shape)
    assert bound_s(scenario) == pytest.approx(expected_s)
    assert cells_bound_s(scenario) == pytest.approx(expected_s)


def test_every_cell_needs_the_origin_once():
    model = ModelShape(blobs=1, blob_bytes=100)
    scenario = Scenario(128, model=model, origin=OriginShape(rate=1.0))
    assert cells_of(scenario) == 2
    assert bound_s(scenario) == pytest.approx(100.0)
    assert cells_bound_s(scenario) == pytest.approx(200.0)


def test_uplinks_bound_where_they_are_narrow():
    model = ModelShape(blobs=1, blob_bytes=100)
    shape = NodeShape(up=0.1, down=10.0)
    scenario = Scenario(10, model=model, origin=OriginShape(rate=4.0), node=shape)
    assert bound_s(scenario) == pytest.approx(10 * 100 / (4.0 + 1.0))


def test_a_swarm_on_uneven_links_reads_once_and_sends_evenly():
    for seed in range(3):
        outcome = whole(small(8, seed=seed, uneven=0.7, uneven_nodes=0.5))
        assert outcome.origin_bytes < 1.05 * MODEL.size_bytes
        assert max(node.sent for node in outcome.nodes) < 1.3 * MODEL.size_bytes
        assert outcome.last_s < 1.5 * bound_s(small(8))
