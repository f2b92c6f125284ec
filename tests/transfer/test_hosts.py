"""Connections to one origin, divided among the transfers that come from it."""

from __future__ import annotations

from contextlib import ExitStack

from modelcache.transfer.hosts import Hosts


class Sharer:
    def __init__(self) -> None:
        self.paused = False
        self.connections: int | None = None

    def share_host(self, connections: int) -> None:
        self.connections = connections


def shares(*sharers: Sharer) -> list[int | None]:
    return [sharer.connections for sharer in sharers]


def test_transfers_from_one_origin_divide_what_is_allowed():
    hosts = Hosts(8)
    one, two, three, other = (Sharer() for _ in range(4))
    with hosts.joined("s3://a", one), hosts.joined("s3://b", other):
        assert shares(one, other) == [8, 8]
        with hosts.joined("s3://a", two), hosts.joined("s3://a", three):
            assert shares(one, two, three) == [3, 3, 2]
            assert other.connections == 8
        assert one.connections == 8


def test_one_that_is_paused_leaves_its_part_to_the_others():
    hosts = Hosts(8)
    one, two = Sharer(), Sharer()
    with hosts.joined("hf://", one), hosts.joined("hf://", two):
        one.paused = True
        hosts.changed(one)
        assert shares(one, two) == [1, 7]
        one.paused = False
        hosts.changed(one)
        assert shares(one, two) == [4, 4]


def test_each_has_one_however_many_there_are():
    hosts = Hosts(2)
    sharers = [Sharer() for _ in range(5)]
    with ExitStack() as stack:
        for sharer in sharers:
            stack.enter_context(hosts.joined("oci://r", sharer))
        assert shares(*sharers) == [1] * 5


def test_without_a_limit_nobody_is_told_anything():
    hosts = Hosts(0)
    one = Sharer()
    with hosts.joined("gs://a", one):
        hosts.changed(one)
        assert one.connections is None
