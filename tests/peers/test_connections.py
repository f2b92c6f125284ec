"""How many connections there may be, of whom, and which must go for others."""

from __future__ import annotations

import threading

import pytest

from modelcache.domain.members import NodeId
from modelcache.errors import Draining, Throttled
from modelcache.peers.connections import Connections, Flights
from tests.peers.support import until

A, B = NodeId("a"), NodeId("b")


class Stub:
    """A connection without a socket."""

    def __init__(self, idle_since_s: float | None = None) -> None:
        self.node: NodeId | None = None
        self.idle_since_s = idle_since_s
        self.thread: threading.Thread | None = None
        self.aborted = 0

    def abort(self) -> None:
        self.aborted += 1


def admitted(connections: Connections, *, node: NodeId | None = None, idle: float | None) -> Stub:
    stub = Stub(idle)
    assert connections.admit(stub)
    if node is not None:
        connections.name(stub, node)
    return stub


def test_the_idlest_of_who_has_most_makes_room():
    connections = Connections(5, 5)
    one = admitted(connections, node=B, idle=1.0)
    busy = admitted(connections, node=A, idle=None)
    older = admitted(connections, node=A, idle=2.0)
    younger = admitted(connections, node=A, idle=3.0)
    unnamed = admitted(connections, idle=0.0)
    for expected in (older, one, younger, unnamed):
        assert not expected.aborted
        admitted(connections, node=B, idle=None)
        assert expected.aborted == 1
    assert not busy.aborted
    assert not connections.admit(Stub())


def test_where_all_are_busy_nobody_is_let_in_until_one_has_gone():
    connections = Connections(2, 2)
    first = admitted(connections, idle=None)
    admitted(connections, idle=None)
    assert not connections.admit(Stub())
    connections.remove(first)
    connections.remove(first)
    assert connections.count == 1
    admitted(connections, idle=None)
    assert not connections.admit(Stub())


def test_an_evicted_connection_does_not_count_any_more():
    connections = Connections(1, 1)
    first = admitted(connections, node=A, idle=1.0)
    second = admitted(connections, node=A, idle=None)
    assert first.aborted == 1
    assert not connections.admit(Stub())
    connections.name(first, B)  # a request of its came just then
    connections.remove(first)
    assert connections.count == 1
    connections.remove(second)
    assert connections.count == 0
    assert not connections._counts


def test_a_peers_own_idle_connections_go_for_its_new_ones():
    connections = Connections(10, 2)
    idle = admitted(connections, node=A, idle=1.0)
    admitted(connections, node=A, idle=None)
    admitted(connections, node=A, idle=None)
    assert idle.aborted == 1
    third = Stub()
    assert connections.admit(third)
    with pytest.raises(Throttled, match="2 connections"):
        connections.name(third, A)
    connections.name(third, B)
    connections.name(third, B)
    assert third.node == B


def test_after_closing_nobody_is_let_in():
    connections = Connections(2, 2)
    stub = admitted(connections, idle=1.0)
    gone = threading.Event()
    stub.thread = threading.Thread(target=gone.wait)
    stub.thread.start()
    assert connections.close(0.01) == 1
    assert not connections.admit(Stub())
    gone.set()
    assert connections.close(10.0) == 0
    assert stub.aborted == 2


def test_draining_waits_for_what_is_under_way():
    flights = Flights()
    done = threading.Event()

    def fly() -> None:
        with flights.one():
            flying.set()
            done.wait(20)

    flying = threading.Event()
    thread = threading.Thread(target=fly)
    thread.start()
    assert flying.wait(20)
    flights.refuse()
    assert not flights.drained(0.01)
    with pytest.raises(Draining), flights.one():
        pass
    results: list[bool] = []
    drains = threading.Thread(target=lambda: results.append(flights.drained(20)))
    drains.start()
    done.set()
    drains.join()
    thread.join()
    until(lambda: results == [True])
    flights.resume()
    with flights.one():
        pass


def test_who_waits_for_a_drain_is_told_when_it_is_taken_back():
    flights = Flights()
    results: list[bool] = []
    with flights.one():
        flights.refuse()
        waits = threading.Thread(target=lambda: results.append(flights.drained(3600)))
        waits.start()
        flights.resume()
        waits.join(20)
        assert results == [False]
