"""The bandwidth limit, in a time of the test's own."""

from __future__ import annotations

import threading

import pytest

from modelcache.transfer import pacing
from modelcache.transfer.pacing import Pacer


class Clock:
    """Time passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        monkeypatch.setattr(pacing, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(pacing, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def test_no_limit_never_waits(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(0)
    pacer.spend(10**12)
    assert not pacer.limited
    assert not clock.slept


def test_the_average_is_the_limit(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(1_000_000)
    for _ in range(100):
        pacer.spend(100_000)
    assert clock.now_s - 100.0 == pytest.approx(10.0, rel=0.05)


def test_a_pause_is_not_made_up_for_by_a_flood(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    pacer = Pacer(1_000_000)
    clock.now_s += 3600.0
    started_s = clock.now_s
    for _ in range(20):
        pacer.spend(100_000)
    assert clock.now_s - started_s > 1.5  # two seconds' worth, less a short burst


def test_threads_share_one_limit():
    """In real time, but only from below: nothing here can be too slow."""
    pacer = Pacer(10_000_000)
    threads = [
        threading.Thread(target=lambda: [pacer.spend(100_000) for _ in range(10)]) for _ in range(4)
    ]
    started_s = pacing.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pacing.monotonic() - started_s > 0.1  # 4 MB at 10 MB/s, less a short burst


def test_saying_the_limit_again_forgives_nothing(monkeypatch: pytest.MonkeyPatch):
    """Nodes that share a limit tell each other several times a second how many they are."""
    clock = Clock(monkeypatch)
    pacer = Pacer(1_000_000)
    monkeypatch.setattr(pacing, "sleep", clock.slept.append)  # others spend meanwhile
    for _ in range(20):
        pacer.spend(100_000)
        pacer.limit(1_000_000)
    assert clock.slept[-1] == pytest.approx(2.0, abs=0.3)
    pacer.limit(2_000_000)
    pacer.spend(100_000)
    assert clock.slept[-1] == pytest.approx(1.05, abs=0.2), "what is owed is owed at the new rate"
    pacer.limit(0)
    assert not pacer.limited
