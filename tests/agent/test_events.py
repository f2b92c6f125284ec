"""The ring of events: bounded, numbered, and not washed out by progress."""

from __future__ import annotations

import threading

import pytest

from modelcache.agent import events
from modelcache.agent.events import Event, EventKind, EventLog
from modelcache.errors import Throttled


@pytest.fixture
def log() -> EventLog:
    return EventLog(lambda: 1700000000.0)


def test_events_are_numbered_and_read_behind_a_number(log: EventLog):
    for kind in (EventKind.QUEUED, EventKind.STARTED, EventKind.WARM):
        log.add(kind, "m", ref="s3://b/m")
    found, lost = log.after(1)
    assert ([event.number for event in found], lost) == ([2, 3], False)
    assert found[0].to_json() == {
        "number": 2,
        "at_s": 1700000000.0,
        "kind": "started",
        "model": "m",
        "ref": "s3://b/m",
    }
    assert log.after(0, most=2)[0] == log.after(0)[0][:2]
    assert log.after(3) == ([], False)


def test_a_models_newer_progress_replaces_its_older(log: EventLog):
    log.add(EventKind.STARTED, "a")
    for share in range(1000):
        log.add(EventKind.PROGRESS, "a", done_bytes=share)
        log.add(EventKind.PROGRESS, "b", done_bytes=share)
    found, lost = log.after(0)
    assert not lost
    assert [(event.kind, event.model) for event in found] == [
        (EventKind.STARTED, "a"),
        (EventKind.PROGRESS, "a"),
        (EventKind.PROGRESS, "b"),
    ]
    assert found[-1].data == {"done_bytes": 999}


def test_a_full_ring_drops_the_oldest_and_says_so(log: EventLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "EVENTS_MAX", 10)
    log.add(EventKind.PROGRESS, "a")
    for _ in range(14):
        log.add(EventKind.QUEUED)
    found, lost = log.after(0)
    assert lost
    assert [event.number for event in found] == list(range(6, 16))
    assert log.after(5) == (found, False)
    log.add(EventKind.PROGRESS, "a")  # whose older one was dropped before
    assert log.after(15)[0][0].number == 16


def test_watchers_are_told_until_they_leave(log: EventLog):
    told: list[Event] = []
    stop = log.watch(told.append)
    event = log.add(EventKind.WARM)
    stop()
    log.add(EventKind.WARM)
    assert told == [event]


def test_there_are_only_so_many_watchers(log: EventLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "WATCHERS_MAX", 1)
    stop = log.watch(lambda _: None)
    with pytest.raises(Throttled, match="try again later"):
        log.watch(lambda _: None)
    stop()
    log.check_room()


def test_numbers_are_given_once_however_many_threads_add(log: EventLog):
    threads = [
        threading.Thread(target=lambda: [log.add(EventKind.QUEUED) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.number for event in log.after(0)[0]] == list(range(1, 801))


def test_the_agents_lives_are_told_apart():
    assert EventLog(lambda: 1.0).epoch != EventLog(lambda: 2.0).epoch
