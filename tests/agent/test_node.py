"""A node: what is wanted comes, stays while it is wanted, and is gone on with after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from modelcache.agent import Engine
from modelcache.agent import node as node_module
from modelcache.agent.events import EventKind
from modelcache.agent.node import Node
from modelcache.domain.manifests import ModelId
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import ModelPhase, Want, wanted_id
from modelcache.errors import Draining, Leased, NotInStore, UsageError
from tests.agent.nodes import (
    WAIT_S,
    Models,
    node_settings,
    ref_to,
    running,
    wait_event,
    wait_for,
    wait_phase,
)
from tests.agent.support import CHUNK_BYTES
from tests.main.support import wait_until
from tests.servers.faults import Fault, Request, held_from
from tests.servers.nginx import Nginx


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def kinds(node: Node, model: str) -> list[EventKind]:
    events, _ = node.events.after(0)
    return [event.kind for event in events if event.model == model]


def slow(bytes_s: float):
    def plan(request: Request) -> Fault | None:
        return Fault(bytes_s=bytes_s) if request.span is not None else None

    return plan


def refused(request: Request) -> Fault:
    del request
    return Fault(status=403, body=b"no")


# What is wanted comes


def test_a_wanted_model_comes_and_is_held_while_it_is_wanted(models: Models, store: Path):
    origin = models.add("m")
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref, priority=60, lease="pod/a", note="for a")
        status = node.wait(ref, WAIT_S)
        assert (status.phase, status.percent, status.priority) == (ModelPhase.WARM, 100.0, 60)
        assert Path(status.path, "model.safetensors").stat().st_size == 5 * CHUNK_BYTES
        assert sum(status.sources.values()) == 5 * CHUNK_BYTES
        engine = node._engine
        held = engine.store.leases(ModelId(status.model_id))
        assert [lease.kind for lease in held] == ["agent"]
        with pytest.raises(Leased):
            engine.remove(status.model_id)
        assert node.release(ref, "pod/a")
        assert engine.store.leases(ModelId(status.model_id)) == []
        with pytest.raises(NotInStore, match="prefetch"):
            node.status(ref)
    assert kinds(node, status.wanted_id) == [
        EventKind.QUEUED,
        EventKind.STARTED,
        EventKind.RESOLVED,
        EventKind.PROGRESS,
        EventKind.WARM,
        EventKind.RELEASED,
    ]


def test_wanting_the_same_twice_is_wanting_it_once(models: Models, store: Path):
    origin = models.add("m")
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        first = node.want(ref, lease="a")
        assert node.wait(ref, WAIT_S).phase is ModelPhase.WARM
        asked = len(origin.requests)
        assert node.want(ref, lease="a").wants == first.wants
        assert node.wait(ref, WAIT_S).phase is ModelPhase.WARM
        assert len(origin.requests) == asked
        assert kinds(node, first.wanted_id).count(EventKind.STARTED) == 1


def test_it_stays_wanted_until_its_last_holder_releases_it(models: Models, store: Path):
    ref = ref_to(models.add("m"), "m")
    with running(node_settings(store)) as node:
        node.want(ref, lease="a", priority=30)
        node.want(ref, lease="b", priority=90)
        assert node.status(ref).priority == 90
        assert node.release(ref, "b")
        assert not node.release(ref, "b")
        assert node.status(ref).priority == 30
        assert node.release(ref, None)
        assert node.statuses() == []
        assert not node.release(ref, "a")


def test_a_model_that_is_released_while_it_comes_stops_coming(models: Models, store: Path):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        wait_phase(node, ref, ModelPhase.TRANSFERRING)
        assert node.release(ref)
        with node._board.changed:
            assert node._board.changed.wait_for(lambda: not node._board.wanted, WAIT_S)
        wait_until(lambda: not list(store.glob("leases/*/*.json")))
        assert list(store.glob("desired/*")) == []


def test_one_that_is_wanted_again_while_it_stops_comes_after_all(models: Models, store: Path):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        wait_phase(node, ref, ModelPhase.TRANSFERRING)
        node.release(ref)
        node.want(ref, lease="again")
        origin.plan = lambda _: None
        status = node.wait(ref, WAIT_S)
        assert status.phase is ModelPhase.WARM
        assert [want.holder for want in status.wants] == ["again"]
        assert len(list(store.glob("leases/*/agent-*.json"))) == 1


@pytest.mark.parametrize(
    "how",
    [
        {"lease": ""},
        {"lease": "two words"},
        {"lease": "x" * 129},
        {"priority": 101},
        {"priority": -1},
        {"ttl_s": 0.0},
        {"ttl_s": float("nan")},
        {"note": "two\nlines"},
    ],
    ids=str,
)
def test_what_cannot_be_a_want_is_refused_and_leaves_nothing(store: Path, how):
    with running(node_settings(store)) as node:
        with pytest.raises(UsageError):
            node.want(parse_ref("s3://bucket/m"), **how)
        assert node.statuses() == []
        assert list(store.glob("desired/*")) == []


def test_there_are_only_so_many_wanted_models(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(node_module, "DESIRED_MAX", 1)
    (tmp_path / "m").write_bytes(b"x")
    first = parse_ref(f"file://{tmp_path}/m")
    with running(node_settings(store)) as node:
        node.want(first)
        with pytest.raises(UsageError, match="release some"):
            node.want(parse_ref("s3://bucket/m"))
        node.want(first, lease="another")


def test_a_want_ends_when_its_time_is_over(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("modelcache.agent.deciding.TICK_S", 0.05)
    ref = ref_to(models.add("m"), "m")
    with running(node_settings(store)) as node:
        node.want(ref, lease="short", ttl_s=0.01)
        event = wait_event(node, EventKind.EXPIRED)
        assert event.data["wants"] == 1
        assert node.statuses() == []
        assert list(store.glob("desired/*")) == []


def test_waiting_ends_with_the_time(models: Models, store: Path):
    ref = ref_to(models.add("m", plan=held_from(0)), "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        started_s = monotonic()
        assert not node.wait(ref, 0.2).phase.settled
        assert monotonic() - started_s < 5


# What fails


def test_what_its_origin_refuses_has_failed_and_comes_when_it_is_asked_for_again(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(node_module, "ASKED_AGAIN_S", 0.0)
    origin = models.add("m", plan=refused)
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        status = node.wait(ref, WAIT_S)
        assert status.phase is ModelPhase.FAILED
        assert status.trouble is not None
        assert status.trouble.code == "forbidden"
        assert status.attempts == 1
        assert status.retry_in_s is not None
        assert status.retry_in_s > 60
        origin.plan = lambda _: None
        node.want(ref)
        status = node.wait(ref, WAIT_S)
        assert (status.phase, status.trouble, status.attempts) == (ModelPhase.WARM, None, 0)


def test_what_passes_is_tried_again_by_itself(models: Models, store: Path):
    origin = models.add("m", plan=lambda _: Fault(reset_at=0))
    ref = ref_to(origin, "m")
    with running(node_settings(store, transfer={"retries_max": 1})) as node:
        node.want(ref)
        event = wait_event(node, EventKind.RETRYING)
        assert event.data["retry_in_s"] < 2
        status = node.status(ref)
        assert status.phase is not ModelPhase.FAILED
        assert status.trouble is not None
        origin.plan = lambda _: None
        assert node.wait(ref, WAIT_S).phase is ModelPhase.WARM


def test_a_pull_with_a_bug_in_it_ends_alone(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    ref, other = ref_to(models.add("m"), "m"), ref_to(models.add("n"), "n")
    with running(node_settings(store)) as node:
        pull = Engine.pull

        def broken(self: Engine, wanted, **how):
            if wanted == ref:
                raise ZeroDivisionError("oops")
            return pull(self, wanted, **how)

        monkeypatch.setattr(Engine, "pull", broken)
        node.want(ref)
        node.want(other)
        status = node.wait(ref, WAIT_S)
        assert status.phase is ModelPhase.FAILED
        assert status.trouble is not None
        assert status.trouble.message == "this is a bug: ZeroDivisionError: oops"
        assert "oops" in "".join(wait_event(node, EventKind.FAILED).data["traceback"])
        assert node.wait(other, WAIT_S).phase is ModelPhase.WARM


# Restarts


def test_a_restarted_node_holds_what_is_warm_and_asks_nobody(models: Models, store: Path):
    origin = models.add("m")
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref, lease="a", priority=70)
        before = node.wait(ref, WAIT_S)
    assert list(store.glob("leases/*/agent-*.json")) == []
    asked = len(origin.requests)
    with running(node_settings(store)) as again:
        assert again.loaded
        assert again.status(ref) == before
        held = again._engine.store.leases(ModelId(before.model_id))
        assert [lease.kind for lease in held] == ["agent"]
    assert len(origin.requests) == asked


def test_a_restarted_node_goes_on_with_what_it_was_fetching(models: Models, store: Path):
    origin = models.add("m", plan=held_from(2 * CHUNK_BYTES))
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref, lease="a", priority=70, note="why")
        wait_for(node, ref, lambda status: status.done_bytes >= 2 * CHUNK_BYTES)
    origin.plan = lambda _: None
    before = origin.body_bytes
    with running(node_settings(store)) as again:
        status = again.wait(ref, WAIT_S)
        assert status.phase is ModelPhase.WARM
        assert [(w.holder, w.priority, w.note) for w in status.wants] == [("a", 70, "why")]
    assert origin.body_bytes - before < 4 * CHUNK_BYTES


def test_a_damaged_file_of_what_is_wanted_is_told_of_and_holds_nothing_back(
    models: Models, store: Path
):
    ref = ref_to(models.add("m"), "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        node.wait(ref, WAIT_S)
    (store / "desired" / "0123456789abcdef.json").write_bytes(b"{")
    with running(node_settings(store)) as again:
        trouble = wait_event(again, EventKind.STORE_TROUBLE)
        assert "0123456789abcdef.json cannot be read" in trouble.data["message"]
        assert again.status(ref).phase is ModelPhase.WARM


# Taking turns


def test_a_more_urgent_model_pauses_a_less_urgent_one(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("modelcache.agent.progressing.STALLED_S", 1000.0)
    first = models.add("low", 12 * CHUNK_BYTES, plan=slow(4e6))
    second = models.add("high", plan=held_from(CHUNK_BYTES))
    low, high = ref_to(first, "low"), ref_to(second, "high")
    few = node_settings(store, transfer={"connections_max": 2})
    with running(few) as node:
        node.want(low, priority=30)
        wait_for(node, low, lambda status: status.done_bytes > 0)
        node.want(high, priority=90)
        paused = wait_for(
            node, low, lambda now: now.phase is ModelPhase.PAUSED and not now.connections
        )
        asked = len(first.gets(".safetensors"))
        second.plan = held_from(3 * CHUNK_BYTES)
        wait_for(node, high, lambda status: status.done_bytes >= 3 * CHUNK_BYTES)
        assert len(first.gets(".safetensors")) == asked
        second.plan = lambda _: None
        assert node.wait(high, WAIT_S).phase is ModelPhase.WARM
        first.plan = lambda _: None
        assert node.wait(low, WAIT_S).phase is ModelPhase.WARM
    order = kinds(node, paused.wanted_id)
    assert order.index(EventKind.PAUSED) < order.index(EventKind.RESUMED)


def test_an_urgent_model_whose_origin_is_silent_holds_nobody_back(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("modelcache.agent.progressing.STALLED_S", 0.3)
    first, second = models.add("low", plan=slow(2e6)), models.add("high", plan=held_from(0))
    low, high = ref_to(first, "low"), ref_to(second, "high")
    with running(node_settings(store, transfer={"stall_timeout_s": 20.0})) as node:
        node.want(high, priority=90)
        wait_phase(node, high, ModelPhase.TRANSFERRING)
        node.want(low, priority=30)
        assert node.wait(low, WAIT_S).phase is ModelPhase.WARM
        assert node.status(high).phase is ModelPhase.TRANSFERRING


def test_priorities_that_change_take_effect_at_once(models: Models, store: Path):
    first, second = models.add("a", plan=slow(1e6)), models.add("b", plan=slow(1e6))
    a, b = ref_to(first, "a"), ref_to(second, "b")
    with running(node_settings(store)) as node:
        node.want(a, priority=30)
        node.want(b, priority=60)
        wait_phase(node, a, ModelPhase.PAUSED)
        node.want(a, priority=90)
        wait_phase(node, b, ModelPhase.PAUSED)
        assert wait_phase(node, a, ModelPhase.TRANSFERRING).priority == 90


def test_a_full_node_gives_its_place_to_the_more_urgent(models: Models, store: Path):
    first, second = models.add("low", plan=held_from(CHUNK_BYTES)), models.add("high")
    low, high = ref_to(first, "low"), ref_to(second, "high")
    with running(node_settings(store, pulls_max=1)) as node:
        node.want(low, priority=30)
        wait_phase(node, low, ModelPhase.TRANSFERRING)
        node.want(high, priority=90)
        assert node.wait(high, WAIT_S).phase is ModelPhase.WARM
        first.plan = lambda _: None
        status = node.wait(low, WAIT_S)
        assert (status.phase, status.attempts, status.trouble) == (ModelPhase.WARM, 0, None)
        assert EventKind.PREEMPTED in kinds(node, status.wanted_id)


def test_a_class_of_priorities_keeps_to_its_limit(models: Models, store: Path):
    size = 2 * CHUNK_BYTES
    ref = ref_to(models.add("m", size), "m")
    limited = node_settings(store, priority_limits=("30: 8MB",))
    with running(limited) as node:
        node.want(ref, priority=20)
        started_s = monotonic()
        assert node.wait(ref, WAIT_S).phase is ModelPhase.WARM
        assert monotonic() - started_s > 0.5 * size / 8e6


# Keeping it so


def test_a_warm_model_is_resolved_anew_when_asked_and_stays_until_the_newer_is_here(
    models: Models, store: Path, web: tuple[Nginx, Path]
):
    origin = models.add("m")
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        before = node.wait(ref, WAIT_S)
        (web[1] / "m" / "model.safetensors").write_bytes(b"newer")
        origin.plan = held_from(0)
        node.want(ref, refresh=True)
        during = wait_for(node, ref, lambda status: status.phase is not ModelPhase.WARM)
        assert during.path == before.path
        origin.plan = lambda _: None
        after = node.wait(ref, WAIT_S)
        assert after.model_id != before.model_id
        assert Path(after.path, "model.safetensors").read_bytes() == b"newer"
        assert node._engine.store.leases(ModelId(before.model_id)) == []


def test_a_refresh_that_fails_leaves_what_is_warm(models: Models, store: Path):
    origin = models.add("m")
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        before = node.wait(ref, WAIT_S)
        origin.plan = refused
        node.want(ref, refresh=True)
        wait_event(node, EventKind.FAILED)
        after = node.status(ref)
        assert (after.phase, after.path) == (ModelPhase.WARM, before.path)
        assert after.trouble is not None


def test_refs_are_resolved_anew_every_so_often(
    models: Models, store: Path, web: tuple[Nginx, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("modelcache.agent.reviewing.REVIEW_EVERY_S", 0.05)
    monkeypatch.setattr("modelcache.agent.deciding.TICK_S", 0.05)
    ref = ref_to(models.add("m"), "m")
    with running(node_settings(store, refresh_s=0.2)) as node:
        node.want(ref)
        before = node.wait(ref, WAIT_S)
        (web[1] / "m" / "model.safetensors").write_bytes(b"newer")
        wait_for(node, ref, lambda status: status.model_id != before.model_id)


def test_a_wanted_model_that_somebody_removes_by_force_comes_again(
    models: Models, store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("modelcache.agent.reviewing.REVIEW_EVERY_S", 0.05)
    monkeypatch.setattr("modelcache.agent.deciding.TICK_S", 0.05)
    ref = ref_to(models.add("m"), "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        before = node.wait(ref, WAIT_S)
        newest = wait_event(node, EventKind.WARM).number
        wait_for(node, ref, lambda _: node._review._known)
        node._engine.remove(before.model_id, force=True)
        wait_event(node, EventKind.EVICTED)
        wait_event(node, EventKind.WARM, after=newest)
        assert Path(node.status(ref).path).is_dir()


def test_a_draining_node_takes_nothing_new_and_forgets_nothing(models: Models, store: Path):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.want(ref)
        wait_phase(node, ref, ModelPhase.TRANSFERRING)
        assert node.drain()
        assert node.drain()
        assert node.draining
        with pytest.raises(Draining, match="node-1 is draining"):
            node.want(parse_ref("s3://bucket/m"))
        assert node.status(ref).phase is ModelPhase.QUEUED
        assert node.release(ref, "nobody") is False
    origin.plan = lambda _: None
    with running(node_settings(store)) as again:
        assert again.wait(ref, WAIT_S).phase is ModelPhase.WARM


def test_a_node_that_resumes_goes_on_with_what_is_wanted(models: Models, store: Path):
    origin = models.add("m", plan=held_from(CHUNK_BYTES))
    ref = ref_to(origin, "m")
    with running(node_settings(store)) as node:
        node.resume()
        assert EventKind.DRAIN_ENDED not in kinds(node, ""), "there was no drain"
        node.want(ref)
        wait_phase(node, ref, ModelPhase.TRANSFERRING)
        assert node.drain()
        origin.plan = lambda _: None
        node.resume()
        node.resume()
        assert not node.draining
        assert node.wait(ref, WAIT_S).phase is ModelPhase.WARM
        assert kinds(node, "") == [EventKind.DRAINING, EventKind.DRAIN_ENDED]
        told = kinds(node, wanted_id(ref))
        assert told.count(EventKind.STARTED) == 2
        assert EventKind.FAILED not in told


def test_a_want_is_a_value():
    want = Want("a", 30, 1.0)
    assert Want.from_json(want.to_json()) == want
