"""Addresses of peers as people write them: `host:port`, `[v6]:port`, `host:port@zone`."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

from modelcache.domain.members import Member
from modelcache.errors import InvalidConfig

EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
PORT_MAX: Final = 65535
_SHOWN: Final = 80
_HOST: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
_V6: Final = r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?"
_ADDRESS: Final = re.compile(
    rf"(?:\[(?P<v6>{_V6})\]|(?P<host>{_HOST}))(?::(?P<port>[0-9]{{1,5}}))?"
)
_MEMBER_HOST: Final = re.compile(rf"{_HOST}|{_V6}")
_ZONE: Final = re.compile(r"[A-Za-z0-9._/-]{0,253}")


def is_host(text: str) -> bool:
    """Whether it can be a host's name or address, as `Member.host` has it."""
    return _MEMBER_HOST.fullmatch(text) is not None


def is_zone(text: str) -> bool:
    """Whether it can be a zone's name; empty where nobody has said."""
    return _ZONE.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, is this machine and nobody else's."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_address(text: str) -> tuple[str, int | None]:
    """Host, without brackets, and port if there is one. Raises InvalidConfig."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"] or 0) > PORT_MAX:
        raise InvalidConfig(
            f"{text[:_SHOWN]!r} is not an address; write host:port, or [address]:port for IPv6"
        )
    return match["v6"] or match["host"], int(match["port"]) if match["port"] else None


def parse_member(text: str, *, zone: str = "") -> Member:
    """A member from `host:port` or `host:port@zone`.

    zone: where it stands if that is not said. Raises InvalidConfig.
    """
    address, at, named_zone = text.partition("@")
    host, port = parse_address(address)
    if not port:
        raise InvalidConfig(f"{text[:_SHOWN]!r} has no port; write host:port or host:port@zone")
    if not is_zone(named_zone) or (at and not named_zone):
        raise InvalidConfig(f"{text[:_SHOWN]!r} has no zone's name after the @")
    return Member(host, port, named_zone or zone)
