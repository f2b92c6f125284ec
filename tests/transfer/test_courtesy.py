"""Who gives way to what a reader waits for, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from modelcache.transfer import courtesy
from modelcache.transfer.courtesy import HOLD_S, Courtesy

WAIT_S = 10.0


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(courtesy, "monotonic", found)
    return found


@pytest.fixture
def holding() -> Iterator[list[threading.Thread]]:
    """Threads that give way; all of them come to an end."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def gives_way(chosen: Courtesy, holding: list[threading.Thread]) -> threading.Thread:
    """A thread that waits by now, or is through already."""
    thread = threading.Thread(target=chosen.give_way)
    thread.start()
    holding.append(thread)
    while thread.is_alive() and not chosen._changed._waiters:
        thread.join(0.001)
    return thread


def test_nobody_waits_for_nothing():
    Courtesy().give_way()
    chosen = Courtesy()
    chosen.begin()
    chosen.end()
    chosen.give_way()


def test_others_wait_until_what_is_urgent_is_there(clock: Clock, holding: list[threading.Thread]):
    chosen = Courtesy()
    chosen.begin()
    chosen.begin()
    thread = gives_way(chosen, holding)
    clock.now_s += 0.5
    chosen.end()
    assert thread.is_alive()
    chosen.end()


def test_the_others_have_as_much_time_as_they_were_held(
    clock: Clock, holding: list[threading.Thread]
):
    chosen = Courtesy()
    chosen.begin()
    clock.now_s += 0.5
    chosen.end()
    chosen.begin()  # at once the next: nobody gives way to it yet
    chosen.give_way()
    clock.now_s += 0.4
    chosen.give_way()
    clock.now_s += 0.2
    thread = gives_way(chosen, holding)
    assert thread.is_alive()
    chosen.end()


def test_nobody_waits_long_for_what_does_not_come(clock: Clock):
    chosen = Courtesy()
    chosen.begin()
    clock.now_s += HOLD_S + 0.1
    chosen.give_way()
    clock.now_s += HOLD_S - 0.2
    chosen.give_way()  # the others' time
