"""When origins are read for what peers owe, in time that the test makes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from modelcache.planner import Fetch, TimerDue
from tests.planner.test_swarm import ANN, BOB, CY, LIMITS, ME, ORIGIN, Desk, owned

STEP_S = 0.25
ORIGIN_S = 0.5  # a chunk on its way from the origin: 33 MB/s on each connection
SOON_S = LIMITS.steal_after_s / 2 + 4  # and three checks


@dataclass(frozen=True, slots=True)
class Case:
    """A chunk of a peer takes so long; whether origins are read for peers after half the time."""

    peer_s: float
    tried: bool


class Hall:
    """A desk, and how long what it asks for takes."""

    def __init__(self, chunks: int, peer_s: float) -> None:
        self.desk = Desk(chunks)
        self.desk.start(*(self.desk.fetching(node) for node in (ANN, BOB, CY)))
        self.mine = set(owned(self.desk, ME, ANN, BOB, CY)[ME])
        self._peer_s = peer_s
        self._since_s: dict[int, float] = {}

    def from_origin(self) -> list[Fetch]:
        return [fetch for fetch in self.desk.open.values() if fetch.source == ORIGIN]

    @property
    def asked(self) -> set[int]:
        """Chunks that the origin was asked for."""
        fetches = (fetch for fetch in self.desk.fetches() if fetch.source == ORIGIN)
        return {run.first for fetch in fetches for run in fetch.runs}

    def run(self, until_s: float) -> None:
        desk = self.desk
        while desk.now_s < until_s and desk.open:
            step_s = desk.now_s + STEP_S
            for number, fetch in list(desk.open.items()):
                takes_s = ORIGIN_S if fetch.source == ORIGIN else self._peer_s
                since_s = self._since_s.setdefault(number, step_s - STEP_S)
                if number in desk.open and step_s - since_s >= takes_s:
                    desk.now_s = step_s - 0.1
                    desk.deliver(fetch)
            desk.now_s = step_s
            desk.tell(TimerDue())


@pytest.mark.parametrize("case", [Case(5.0, True), Case(0.25, False)], ids=str)
def test_an_origin_that_may_be_many_times_quicker_is_tried_before_our_share_is_read(
    case: Case,
) -> None:
    hall = Hall(4000, case.peer_s)
    hall.run(SOON_S)
    assert hall.mine - hall.asked
    assert (len(hall.from_origin()) > LIMITS.connections_max / 2) is case.tried


def test_an_origin_that_is_read_for_peers_never_runs_dry() -> None:
    hall = Hall(1200, 5.0)
    hall.run(SOON_S)
    moments = 0
    while len(hall.asked) < 1000:
        hall.run(hall.desk.now_s + STEP_S)
        assert len(hall.from_origin()) > LIMITS.connections_max / 2
        moments += 1
    assert moments > 10
