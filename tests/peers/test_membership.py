"""Who is in the cluster, by list and by name."""

from __future__ import annotations

import socket
import threading

import pytest

from modelcache.config import PeerSettings
from modelcache.domain.members import Member
from modelcache.errors import InvalidConfig
from modelcache.peers import membership
from modelcache.peers.membership import DnsMembers, StaticMembers, membership_of


def test_a_list_names_members_and_where_they_stand():
    found = StaticMembers(["a:1", "[fd00::1]:2@z1", "10.0.0.1:3@z2", "a:1"], zone="mine")
    assert found.members() == (
        Member("a", 1, "mine"),
        Member("fd00::1", 2, "z1"),
        Member("10.0.0.1", 3, "z2"),
    )


@pytest.mark.parametrize("line", ["", "a", "a:0", "a:x", "a:65536", "a b:1", "a:1@", "::1:5"])
def test_lines_that_name_nobody_are_refused(line: str):
    with pytest.raises(InvalidConfig):
        StaticMembers([line])


def test_a_list_has_an_end():
    with pytest.raises(InvalidConfig):
        StaticMembers([f"n{number}:1" for number in range(membership.MEMBERS_MAX + 1)])


class Names:
    """A resolver of which the test says what it answers."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] | Exception = addresses
        self.asked = 0

    def __call__(self, name: str, port: int) -> tuple[str, ...]:
        assert (name, port) == ("peers", 9871)
        self.asked += 1
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return self.addresses


def test_all_addresses_of_a_name_are_members_of_this_zone(monkeypatch: pytest.MonkeyPatch):
    names = Names("10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2")
    found = DnsMembers("peers", 9871, zone="z", lookup=names)
    expected = tuple(Member(host, 9871, "z") for host in ("10.0.0.1", "10.0.0.2", "fd00::1"))
    assert found.members() == expected
    assert found.members() == expected
    assert names.asked == 1
    monkeypatch.setattr(membership, "REFRESH_S", 0.0)
    names.addresses = ("10.0.0.3",)
    assert found.members() == (Member("10.0.0.3", 9871, "z"),)


@pytest.mark.parametrize(
    "trouble", [socket.gaierror(-2, "unknown"), OSError("no"), UnicodeError("long")]
)
def test_the_last_answer_holds_while_the_resolver_fails(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception
):
    names = Names("10.0.0.1")
    found = DnsMembers("peers", 9871, lookup=names)
    before = found.members()
    monkeypatch.setattr(membership, "REFRESH_S", 0.0)
    names.addresses = trouble
    assert found.members() == before
    names.addresses = ()
    assert found.members() == before
    names.addresses = ("10.0.0.2",)
    assert found.members() != before


def test_a_name_without_answer_is_nobody_and_asked_again_only_later():
    names = Names()
    names.addresses = socket.gaierror(-2, "unknown")
    found = DnsMembers("peers", 9871, lookup=names)
    assert found.members() == ()
    assert found.members() == ()
    assert names.asked == 1


def test_nobody_waits_for_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(membership, "REFRESH_S", 0.0)
    go_on, asked = threading.Event(), threading.Event()
    names = Names("10.0.0.1")

    def lookup(name: str, port: int) -> tuple[str, ...]:
        if names.asked:
            asked.set()
            go_on.wait(20)
        return names(name, port)

    found = DnsMembers("peers", 9871, lookup=lookup)
    before = found.members()
    hanging = threading.Thread(target=found.members)
    hanging.start()
    assert asked.wait(20)
    assert found.members() == before
    go_on.set()
    hanging.join()


def test_the_system_resolves_names_by_itself():
    assert Member("127.0.0.1", 9871) in DnsMembers("localhost", 9871).members()


def test_settings_choose():
    assert membership_of(PeerSettings()).members() == ()
    assert membership_of(PeerSettings(members=("a:1",), zone="z")).members() == (
        Member("a", 1, "z"),
    )
    found = membership_of(PeerSettings(dns="localhost:5"))
    assert isinstance(found, DnsMembers)
    assert {member.port for member in found.members()} == {5}
    with pytest.raises(InvalidConfig):
        membership_of(PeerSettings(dns="localhost"))
