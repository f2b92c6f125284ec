"""Who sends next: threads that want turns, and the order in which they get them."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from time import monotonic

import pytest

from modelcache.domain.members import NodeId
from modelcache.errors import Throttled
from modelcache.peers.turns import BUFFER_BYTES, FAIR_EVERY, Allowance, Turn, Turns
from tests.peers.support import WAIT_S, until

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Queue:
    """Requests that wait for turns, each in a thread; those that got one leave when told to."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._lock = threading.Lock()
        self._leave = threading.Semaphore(0)

    def add(self, node: NodeId, priority: int = 50, name: str = "") -> None:
        """Let one more wait, behind all that wait."""
        thread = threading.Thread(target=self._run, args=(node, priority, name or node))
        before = len(self.turns._waiting)
        self._threads.append(thread)
        thread.start()
        until(lambda: len(self.turns._waiting) == before + 1)

    def serve(self) -> list[str]:
        """One leaves, the next gets the turn, until none is left; the order they came in."""
        for _ in self._threads:
            self._leave.release()
        for thread in self._threads:
            thread.join(WAIT_S)
        return self.order

    def _run(self, node: NodeId, priority: int, name: str) -> None:
        turn = Turn(self.turns, node, priority)
        turn.take(WAIT_S)
        with self._lock:
            self.order.append(name)
        self._leave.acquire()
        turn.leave()


@pytest.fixture
def one_slot() -> tuple[Turns, Turn]:
    """All of one slot is taken."""
    turns = Turns(1, 8)
    taken = Turn(turns, NodeId("first"), 50)
    taken.take(1.0)
    return turns, taken


def test_free_slots_are_had_at_once_up_to_a_peers_share():
    turns = Turns(3, 2)
    mine = [Turn(turns, A, 50) for _ in range(3)]
    mine[0].take(0.0)
    mine[1].take(0.0)
    with pytest.raises(Throttled) as caught:
        mine[2].take(0.01)
    assert caught.value.retry_after_s == 1.0
    other = Turn(turns, B, 50)
    other.take(0.0)
    assert turns.sending() == {A: 2, B: 1}
    for each in (*mine, other, other):
        each.leave()
    assert turns.sending() == {}
    assert not turns._last


def test_peers_take_turns_however_many_requests_each_has(one_slot):
    turns, taken = one_slot
    queue = Queue(turns)
    for _ in range(4):
        queue.add(A)
    for node in (B, C, B):
        queue.add(node)
    taken.leave()
    assert queue.serve() == ["a", "b", "c", "a", "b", "a", "a"]


def test_the_peer_that_is_sent_least_goes_first():
    turns = Turns(3, 8)
    holding = [Turn(turns, A, 50), Turn(turns, A, 50), Turn(turns, B, 50)]
    for each in holding:
        each.take(0.0)
    queue = Queue(turns)
    for node in (A, B, C):
        queue.add(node)
    holding[0].leave()
    until(lambda: len(queue.order) == 1)
    assert queue.order == ["c"]
    for each in holding[1:]:
        each.leave()
    queue.serve()


def test_urgent_requests_go_first_and_yet_nobody_starves(one_slot):
    turns, taken = one_slot
    queue = Queue(turns)
    queue.add(C, 10, "patient")
    for number in range(2 * FAIR_EVERY):
        queue.add((A, B)[number % 2], 90, "urgent")
    taken.leave()
    order = queue.serve()
    assert order[:2] == ["urgent"] * 2
    assert "patient" in order[:FAIR_EVERY]


def test_a_turn_is_passed_on_only_if_somebody_waits(one_slot):
    turns, taken = one_slot
    taken.pass_on(0.0)
    queue = Queue(turns)
    queue.add(A)
    with pytest.raises(Throttled):
        taken.pass_on(0.05)
    assert queue.order == ["a"]
    taken.leave()  # it has none
    assert queue.serve() == ["a"]
    taken.take(0.0)
    taken.leave()


def test_who_comes_anew_does_not_overtake_who_passed_a_turn_on(one_slot):
    turns, taken = one_slot
    queue = Queue(turns)
    queue.add(A)
    passed = threading.Thread(target=lambda: (taken.pass_on(WAIT_S), queue.order.append("first")))
    passed.start()
    until(lambda: queue.order == ["a"])
    until(lambda: len(turns._waiting) == 1)
    queue.add(B)
    queue._leave.release()
    until(lambda: queue.order == ["a", "first"])
    passed.join()
    taken.leave()
    assert queue.serve() == ["a", "first", "b"]


def test_buffers_are_used_again():
    turns = Turns(2, 2)
    with turns.buffer() as first, turns.buffer() as second:
        assert len(first) == len(second) == BUFFER_BYTES
        assert first is not second
    with ExitStack() as stack:
        again = [stack.enter_context(turns.buffer()) for _ in range(2)]
        assert {id(each) for each in again} == {id(first), id(second)}


def test_many_threads_never_hold_more_turns_than_there_are():
    turns = Turns(3, 2)
    problems: list[str] = []

    def work(node: NodeId) -> None:
        for _ in range(50):
            turn = Turn(turns, node, 50)
            turn.take(WAIT_S)
            held = turns.sending()
            if sum(held.values()) > 3 or max(held.values()) > 2:
                problems.append(str(held))
            turn.pass_on(WAIT_S)
            turn.leave()

    threads = [threading.Thread(target=work, args=(NodeId(f"n{i % 4}"),)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not problems
    assert turns.sending() == {}


def test_an_allowance_holds_for_all_and_lets_go_at_the_end():
    stopping = threading.Event()
    allowance = Allowance(1 << 20, stopping)
    started_s = monotonic()
    for _ in range(4):
        allowance.spend(128 << 10)
    assert 0.2 < monotonic() - started_s < 5
    stopping.set()
    allowance.spend(1 << 30)
    assert monotonic() - started_s < 5
    assert not Allowance(0, stopping).limited
