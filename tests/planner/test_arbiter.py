"""Which transfers run beside each other, and how fast, for every order in which things happen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelcache.planner.arbiter import (
    Arbiter,
    ArbiterAction,
    ArbiterEvent,
    Ended,
    Limit,
    Moving,
    Pause,
    PriorityChanged,
    Resume,
    Started,
    TransferId,
    Waiting,
)

A, B, C = TransferId("a"), TransferId("b"), TransferId("c")


def run(arbiter: Arbiter, *events) -> list[ArbiterAction]:
    """The actions of the last event."""
    actions: list[ArbiterAction] = []
    for event in events:
        actions = arbiter.handle(event)
    return actions


def test_a_less_urgent_transfer_is_paused_when_a_more_urgent_one_moves_bytes():
    arbiter = Arbiter()
    assert run(arbiter, Started(A, 30), Moving(A), Started(B, 90)) == []
    assert run(arbiter, Moving(B)) == [Pause(A)]


def test_it_resumes_when_the_urgent_one_has_ended():
    arbiter = Arbiter()
    run(arbiter, Started(A, 30), Moving(A), Started(B, 90), Moving(B))
    assert run(arbiter, Ended(B)) == [Resume(A)]


def test_one_that_only_waits_holds_nobody_back():
    arbiter = Arbiter()
    run(arbiter, Started(A, 30), Moving(A), Started(B, 90), Moving(B))
    assert run(arbiter, Waiting(B)) == [Resume(A)]
    assert run(arbiter, Moving(B)) == [Pause(A)]


def test_equals_run_beside_each_other():
    arbiter = Arbiter()
    assert run(arbiter, Started(A, 60), Moving(A), Started(B, 60), Moving(B)) == []


def test_one_that_begins_under_an_urgent_one_is_paused_at_once():
    arbiter = Arbiter()
    run(arbiter, Started(B, 90), Moving(B))
    assert run(arbiter, Started(A, 30)) == [Pause(A)]


def test_a_paused_one_that_becomes_urgent_takes_the_others_place():
    arbiter = Arbiter()
    run(arbiter, Started(A, 30), Moving(A), Started(B, 60), Moving(B))
    assert run(arbiter, PriorityChanged(A, 90)) == [Resume(A), Pause(B)]


def test_a_class_shares_its_limit_among_those_that_run():
    arbiter = Arbiter([(30, 100), (60, 1000)])
    assert run(arbiter, Started(A, 30)) == [Limit(A, 100)]
    run(arbiter, Moving(A), Started(B, 30))
    assert run(arbiter, Moving(B)) == [Limit(A, 50), Limit(B, 50)]
    assert run(arbiter, Ended(A)) == [Limit(B, 100)]
    assert run(arbiter, PriorityChanged(B, 45)) == [Limit(B, 1000)]
    assert run(arbiter, PriorityChanged(B, 90)) == [Limit(B, 0)]


def test_the_narrower_of_two_limits_holds_whatever_order_they_are_written_in():
    arbiter = Arbiter([(60, 100), (30, 500)])
    assert run(arbiter, Started(A, 20)) == [Limit(A, 100)]


def test_what_is_said_of_unknown_transfers_changes_nothing():
    arbiter = Arbiter()
    assert run(arbiter, Moving(A), Waiting(A), PriorityChanged(A, 9), Ended(A)) == []


transfers = st.sampled_from([A, B, C])
priorities = st.sampled_from([0, 10, 30, 60, 90, 100])
events = st.one_of(
    st.builds(Started, transfers, priorities),
    st.builds(Moving, transfers),
    st.builds(Waiting, transfers),
    st.builds(PriorityChanged, transfers, priorities),
    st.builds(Ended, transfers),
)


class Node:
    """What a node knows of its transfers: what has happened to them, and what they were told."""

    def __init__(self) -> None:
        self.priority: dict[TransferId, int] = {}
        self.moving: set[TransferId] = set()
        self.paused: set[TransferId] = set()
        self.limits: dict[TransferId, int] = {}

    def note(self, event: ArbiterEvent) -> None:
        match event:
            case Started(transfer, priority):
                self.priority.setdefault(transfer, priority)
            case Ended(transfer):
                self.priority.pop(transfer, None)
                self.moving.discard(transfer)
                self.paused.discard(transfer)
                self.limits.pop(transfer, None)
            case Moving(transfer) if transfer in self.priority:
                self.moving.add(transfer)
            case Waiting(transfer):
                self.moving.discard(transfer)
            case PriorityChanged(transfer, priority) if transfer in self.priority:
                self.priority[transfer] = priority
            case _:
                pass

    def obey(self, action: ArbiterAction) -> None:
        assert action.transfer in self.priority
        match action:
            case Pause(transfer):
                assert transfer not in self.paused
                self.paused.add(transfer)
            case Resume(transfer):
                self.paused.remove(transfer)
            case Limit(transfer, bytes_s):
                assert self.limits.get(transfer, 0) != bytes_s
                self.limits[transfer] = bytes_s


@given(st.lists(events, max_size=60))
def test_told_once_each_the_transfers_are_always_where_they_should_be(happened):
    arbiter, node = Arbiter([(30, 1000), (60, 5000)]), Node()
    for event in happened:
        node.note(event)
        for action in arbiter.handle(event):
            node.obey(action)
        highest = max((node.priority[each] for each in node.moving), default=0)
        assert node.paused == {each for each, own in node.priority.items() if own < highest}
        for most, bytes_s in ((30, 1000), (60, 5000)):
            running = [each for each in node.moving - node.paused if node.priority[each] <= most]
            assert sum(node.limits[each] for each in running) <= bytes_s
            assert all(node.limits[each] for each in running)
