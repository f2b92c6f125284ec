"""Steering a pull from other threads: whoever listens ends up with what holds."""

from __future__ import annotations

import threading

from modelcache.agent.control import PullControl


def test_whoever_attaches_hears_at_once_and_of_every_change_until_it_leaves():
    control = PullControl(priority=30)
    heard: list[tuple[bool, int, int]] = []
    detach = control.attach(
        lambda: heard.append((control.paused, control.priority, control.limit_bytes_s))
    )
    control.set_paused(paused=True)
    control.set_priority(90)
    control.set_limit(1000)
    assert heard == [(False, 30, 0), (True, 30, 0), (True, 90, 0), (True, 90, 1000)]
    detach()
    control.set_paused(paused=False)
    assert len(heard) == 4


def test_what_changes_nothing_is_not_told():
    control = PullControl(priority=30)
    heard: list[int] = []
    control.attach(lambda: heard.append(1))
    control.set_paused(paused=False)
    control.set_priority(30)
    control.set_limit(0)
    assert heard == [1]


def test_the_last_that_is_applied_is_what_holds_however_many_threads_change_it():
    control = PullControl()
    applied: list[bool] = []
    control.attach(lambda: applied.append(control.paused))
    start = threading.Barrier(4)

    def flip() -> None:
        start.wait()
        for number in range(500):
            control.set_paused(paused=bool(number % 2))

    threads = [threading.Thread(target=flip) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied[-1] is control.paused
