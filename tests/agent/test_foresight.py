"""A node that predicts its own starts, and is held to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.foresight.foresight import NEW_NODE
from modelcache.agent.node import Node
from modelcache.config import ForecastSettings, Settings
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import ModelPhase, wanted_id
from modelcache.errors import NotInStore
from modelcache.forecast.estimate import Tier
from tests.agent.nodes import (
    MIB,
    Models,
    node_settings,
    ref_to,
    running,
    wait_event,
    wait_for,
    wait_phase,
)
from tests.agent.support import CHUNK_BYTES
from tests.servers.faults import Fault, held_from, never
from tests.servers.nginx import Nginx

SIZE = 5 * CHUNK_BYTES


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """A node to which a speed is declared, so that its first start is predicted, too."""
    base = node_settings(tmp_path / "store")
    return replace(base, forecast=ForecastSettings(origin_bytes_s=10 * MIB))


def settle(node: Node) -> None:
    """Until the node has learnt what it was told."""
    done = threading.Event()
    node.foresight._later(done.set)
    assert done.wait(30)


def bring(node: Node, ref: Ref) -> None:
    node.want(ref)
    wait_phase(node, ref, ModelPhase.WARM)
    settle(node)


def half_way(node: Node, ref: Ref) -> None:
    """Wanted, and so far that it is known what is missing."""
    node.want(ref)
    wait_for(node, ref, lambda status: 0 < status.done_bytes < status.total_bytes)
    settle(node)


def resolve(node: Node, ref: Ref, **want: Any) -> None:
    """Wanted, and known what it consists of; nothing of it has to come."""
    node.want(ref, **want)
    after = 0
    while (event := wait_event(node, EventKind.RESOLVED, after)).model != wanted_id(ref):
        after = event.number
    settle(node)


def test_a_finished_start_is_compared_with_what_was_predicted_when_it_began(
    chosen: Settings, models: Models
):
    ref = ref_to(models.add("m"), "m")
    with running(chosen) as node:
        bring(node, ref)
        standing = node.foresight.knowledge.standing()
        assert (standing.starts, standing.finished, standing.abandoned) == (1, 1, 0)
        assert standing.error is not None
        ((model, tier),) = node.foresight.knowledge.times()
        assert (model, tier) == (node.status(ref).model_id[:12], Tier.COLD)


def test_a_cold_system_says_that_it_does_not_know(chosen: Settings, models: Models):
    proxy = models.add("m", plan=held_from(MIB))
    with running(replace(chosen, forecast=ForecastSettings())) as node:
        ref = ref_to(proxy, "m")
        half_way(node, ref)
        assert node.foresight.here(ref).prediction is None
        assert node.foresight.knowledge.standing().starts == 0
        with pytest.raises(NotInStore, match="never resolved on this node"):
            node.foresight.here(ref_to(proxy, "other"))


def test_what_is_declared_is_used_until_it_is_measured(chosen: Settings, models: Models):
    slow = models.add("slow", 4 * MIB, plan=lambda _: Fault(bytes_s=2 * MIB))
    second = models.add("second")
    with running(replace(chosen, forecast=ForecastSettings(origin_bytes_s=1 << 40))) as node:
        bring(node, ref_to(slow, "slow"))
        second.plan = held_from(0)
        resolve(node, ref_to(second, "second"))
        told = node.foresight.here(ref_to(second, "second")).prediction
        assert told is not None
        assert told.measured
        assert not told.confident  # after one start nobody can be
        assert told.p50_s <= told.p90_s
        second.plan = never


def test_a_start_that_nobody_waits_for_any_more_is_counted_as_given_up(
    chosen: Settings, models: Models
):
    ref = ref_to(models.add("m", plan=held_from(MIB)), "m")
    with running(chosen) as node:
        half_way(node, ref)
        node.release(ref)
        settle(node)
        standing = node.foresight.knowledge.standing()
        assert (standing.starts, standing.finished, standing.abandoned) == (1, 0, 1)


def test_a_start_goes_on_in_the_next_agents_life(chosen: Settings, models: Models):
    proxy = models.add("m", plan=held_from(MIB))
    ref = ref_to(proxy, "m")
    with running(chosen) as node:
        half_way(node, ref)
        (before,) = node.foresight.knowledge._open.values()
    proxy.plan = never
    with running(chosen) as node:
        wait_phase(node, ref, ModelPhase.WARM)
        settle(node)
        (start,) = node.foresight.knowledge._score
        assert start.promise.predicted_s == pytest.approx(before.promise.predicted_s, rel=1e-3)
        assert start.finished


def test_a_start_whose_want_is_gone_after_a_crash_is_not_forgotten(
    chosen: Settings, models: Models
):
    ref = ref_to(models.add("m", plan=held_from(MIB)), "m")
    with running(chosen) as node:
        half_way(node, ref)
    for path in Engine(chosen).store.layout.desired.iterdir():
        path.unlink()
    with running(chosen) as node:
        settle(node)
        assert node.foresight.knowledge.standing().abandoned == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"format": 1, "score": 3}', b"\xff" * 99])
def test_a_file_that_cannot_be_read_is_as_if_nothing_had_been_learnt(
    chosen: Settings, models: Models, damage: bytes
):
    path = Engine(chosen).store.layout.forecast
    path.write_bytes(damage)
    with running(chosen) as node:
        bring(node, ref_to(models.add("m"), "m"))
        assert node.foresight.knowledge.standing().starts == 1
    assert json.loads(path.read_bytes())["format"] == 1


def test_what_comes_first_makes_a_start_longer(chosen: Settings, models: Models):
    with running(chosen) as node:
        first, second = (ref_to(models.add(name, plan=held_from(0)), name) for name in "ab")
        for ref in (first, second):
            resolve(node, ref, priority=50)
        alone = node.foresight.here(first, priority=51).prediction
        shared = node.foresight.here(first, priority=50).prediction
        assert alone is not None
        assert shared is not None
        assert alone.needs.ahead_bytes == 0
        assert shared.needs.ahead_bytes == shared.needs.missing_bytes == SIZE
        assert shared.parts.queue_s == pytest.approx(alone.parts.fetch_s)


def test_a_new_node_needs_all_of_it_and_has_it_from_those_that_hold_it(
    chosen: Settings, models: Models
):
    ref = ref_to(models.add("m"), "m")
    with running(chosen) as node:
        bring(node, ref)
        here, new = node.foresight.everywhere(ref)
        assert (here.node, here.needs.tier) == ("node-1", Tier.WARM)
        assert (new.node, new.needs.tier) == (NEW_NODE, Tier.COLD)
        assert new.needs.holders == 1  # this one


def test_the_size_of_a_model_is_known_when_it_is_gone(chosen: Settings, models: Models):
    ref = ref_to(models.add("m"), "m")
    with running(chosen) as node:
        bring(node, ref)
        node.release(ref)
        node._engine.remove(node._engine.store.find(str(ref)), force=True)
        needs = node.foresight.here(ref).needs
        assert needs.tier is Tier.COLD
        assert needs.size_bytes == SIZE
