"""Whose turn it is, and when a failed attempt is repeated."""

from __future__ import annotations

import threading

import pytest

from modelcache.agent.desired import DesiredModel
from modelcache.agent.progressing import (
    REFUSED_RETRY_S,
    RETRY_LAST_S,
    STALLED_S,
    Attempt,
    Stop,
    Wanted,
    is_passing,
    retry_delay_s,
    status_of,
    watch_movement,
)
from modelcache.agent.scheduling import next_due_s, turns
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import ModelPhase, Trouble, Want, WantedStatus
from modelcache.errors import (
    DigestMismatch,
    Forbidden,
    NotFound,
    OriginChanged,
    SourceUnavailable,
    StoreFull,
    Throttled,
)
from modelcache.transfer.report import Phase, Progress


def wanted(name: str, priority: int, *, since_s: float = 0.0, running: bool = False) -> Wanted:
    ref = parse_ref(f"s3://bucket/{name}")
    made = Wanted(DesiredModel(ref, (Want("x", priority, since_s),)))
    if running:
        made.attempt = Attempt(threading.Event(), 0.0)
    return made


def test_the_most_urgent_begin_first_and_among_equals_the_oldest():
    low, old, new = wanted("low", 10), wanted("old", 50, since_s=1), wanted("new", 50, since_s=2)
    assert turns([low, new, old], pulls_max=2, now_s=0).begin == [old, new]


def test_a_full_house_stops_the_least_urgent_for_a_more_urgent_one():
    running = [wanted("a", 30, running=True), wanted("b", 10, running=True)]
    found = turns([*running, wanted("c", 90)], pulls_max=2, now_s=0)
    assert (found.begin, found.stop) == ([], [running[1]])


def test_equals_do_not_stop_each_other():
    found = turns([wanted("a", 30, running=True), wanted("b", 30)], pulls_max=1, now_s=0)
    assert (found.begin, found.stop) == ([], [])


def test_no_more_are_stopped_than_wait():
    running = [wanted("a", 10, running=True), wanted("b", 10, running=True)]
    assert running[0].attempt is not None
    running[0].attempt.stop(Stop.PREEMPTED)
    assert turns([*running, wanted("c", 90)], pulls_max=2, now_s=0).stop == []
    both = turns([*running, wanted("c", 90), wanted("d", 90)], pulls_max=2, now_s=0)
    assert both.stop == [running[1]]


def test_what_is_not_due_or_not_wanted_any_more_waits_for_nothing():
    later, gone, warm = wanted("later", 90), wanted("gone", 90), wanted("warm", 90)
    later.due_s = 5.0
    gone.desired = gone.desired.without(None)
    warm.settle_warm()
    assert turns([later, gone, warm], pulls_max=9, now_s=4.9).begin == []
    assert next_due_s([later, gone, warm]) == 5.0
    assert turns([later, gone, warm], pulls_max=9, now_s=5.0).begin == [later]
    assert next_due_s([gone, warm]) is None


def test_the_first_reason_to_stop_counts():
    attempt = Attempt(threading.Event(), 0.0)
    attempt.stop(Stop.RELEASED)
    attempt.stop(Stop.LEAVING)
    assert attempt.stopped is Stop.RELEASED
    assert attempt.cancel.is_set()


@pytest.mark.parametrize(
    ("error", "attempts", "passing"),
    [
        (SourceUnavailable("x"), 50, True),
        (OriginChanged("x"), 1, True),
        (DigestMismatch("x"), 1, True),
        (DigestMismatch("x"), 3, False),
        (NotFound("x"), 1, False),
        (Forbidden("x"), 1, False),
        (StoreFull("x"), 1, False),
    ],
)
def test_what_time_heals_is_tried_again_soon(error, attempts: int, *, passing: bool):
    assert is_passing(error, attempts) is passing
    if not passing:
        assert 0.7 * REFUSED_RETRY_S < retry_delay_s(error, attempts, "n") < 1.3 * REFUSED_RETRY_S


def test_retries_grow_from_a_second_to_minutes_and_differ_between_nodes():
    error = SourceUnavailable("x")
    delays = [retry_delay_s(error, attempt, "node-1/model") for attempt in range(1, 40)]
    assert 0.75 <= delays[0] <= 1.25
    assert 0.75 * RETRY_LAST_S <= delays[-1] <= 1.25 * RETRY_LAST_S
    assert delays == [retry_delay_s(error, n, "node-1/model") for n in range(1, 40)]
    assert delays[0] != retry_delay_s(error, 1, "node-2/model")


def test_what_a_source_asks_for_is_obeyed_within_reason():
    assert retry_delay_s(Throttled("x", retry_after_s=40.0), 1, "n") == 40.0
    assert retry_delay_s(Throttled("x", retry_after_s=1e9), 1, "n") == RETRY_LAST_S


def moment(done: int, phase: Phase = Phase.TRANSFERRING) -> Progress:
    return Progress(phase, "r", 0.0, total_bytes=100, done_bytes=done)


def test_a_transfer_moves_while_bytes_come_and_for_a_while_after():
    attempt = Attempt(threading.Event(), 0.0)
    assert not watch_movement(attempt, moment(0, Phase.RESOLVING), None, now_s=0, paused=False)
    before = moment(0, Phase.RESOLVING)
    assert watch_movement(attempt, moment(0), before, now_s=1.0, paused=False)
    late = 1.0 + STALLED_S
    assert watch_movement(attempt, moment(0), moment(0), now_s=late - 0.1, paused=False)
    assert not watch_movement(attempt, moment(0), moment(0), now_s=late, paused=False)
    assert watch_movement(attempt, moment(5), moment(0), now_s=late + 1, paused=False)
    assert not watch_movement(
        attempt, moment(5, Phase.PUBLISHING), moment(5), now_s=late, paused=False
    )


def test_one_that_is_held_back_counts_as_moving_when_it_goes_on():
    attempt = Attempt(threading.Event(), 0.0)
    watch_movement(attempt, moment(5), None, now_s=0.0, paused=False)
    assert watch_movement(attempt, moment(5), moment(5), now_s=1000.0, paused=True)
    assert watch_movement(attempt, moment(5), moment(5), now_s=1001.0, paused=False)


def test_a_status_is_paused_only_while_bytes_are_held_back():
    model = wanted("a", 30, running=True)
    model.phase = ModelPhase.TRANSFERRING
    model.progress = moment(40)
    model.control.set_paused(paused=True)
    status = status_of(model, 0.0)
    assert (status.phase, status.percent) == (ModelPhase.PAUSED, 40.0)
    model.phase = ModelPhase.PUBLISHING
    assert status_of(model, 0.0).phase is ModelPhase.PUBLISHING


def test_a_status_survives_the_wire():
    model = wanted("a", 30)
    model.trouble, model.due_s = Trouble("throttled", "less"), 12.0
    model.sources = {"peer:b": 5}
    status = status_of(model, 10.0)
    assert status.retry_in_s == 2.0
    assert WantedStatus.from_json(status.to_json() | {"later": 1}) == status
