"""Addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.addresses import (
    EVERYWHERE,
    is_host,
    is_loopback,
    is_zone,
    parse_address,
    parse_member,
)
from modelcache.domain.members import Member
from modelcache.errors import InvalidConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node-1:9871", ("node-1", 9871)),
        ("node-1.example.org", ("node-1.example.org", None)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("[::]:9871", ("::", 9871)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("[::1]", ("::1", None)),
    ],
)
def test_addresses_are_read(text: str, expected: tuple[str, int | None]):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:1:2",
        "::1",
        "a:65536",
        "a:-1",
        "a:+1",
        "a b",
        "-a",
        "a/b:1",
        "[a]:1",
        "a:1\n",
        "\u0661:1",
        "a:\u0661",
        "http://a:1",
        "x" * 300,
    ],
)
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(InvalidConfig, match="host:port"):
        parse_address(text)


def test_members_stand_in_their_zone_or_in_the_one_given():
    assert parse_member("a:1@eu-1/a") == Member("a", 1, "eu-1/a")
    assert parse_member("a:1", zone="z") == Member("a", 1, "z")
    for text in ("a", "a:0", "a:1@", "a:1@x y", "a:1@x@y"):
        with pytest.raises(InvalidConfig):
            parse_member(text)


@given(st.text(max_size=40))
def test_what_is_read_can_be_told_to_others(text: str):
    try:
        host, _ = parse_address(text)
    except InvalidConfig:
        return
    assert is_host(host)
    assert host.isprintable()


def test_hosts_and_zones_are_harmless():
    assert is_host("10.0.0.1")
    assert is_host("fd00::1")
    assert not is_host("a\nb")
    assert not is_host("")
    assert is_zone("")
    assert not is_zone("a b")


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("LocalHost", True),
        (EVERYWHERE[0], False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("node-1", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, ours: bool):
    assert is_loopback(host) is ours
