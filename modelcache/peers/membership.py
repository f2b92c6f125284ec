"""Who is in the cluster: a list that somebody wrote, or a name whose addresses are the nodes.

Another way to know plugs in by having `members`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Protocol

from modelcache.config import PeerSettings
from modelcache.domain.addresses import parse_address, parse_member
from modelcache.domain.members import Member
from modelcache.errors import InvalidConfig

MEMBERS_MAX: Final = 10_000
REFRESH_S: Final = 5.0  # a node that has just come is known after that, and one announcement

Lookup = Callable[[str, int], Sequence[str]]


class Membership(Protocol):
    """Thread-safe."""

    def members(self) -> tuple[Member, ...]:
        """All nodes, this one among them perhaps; quick, and never raises."""
        ...


class StaticMembers:
    """A list, the same on all nodes."""

    def __init__(self, lines: Sequence[str], *, zone: str = "") -> None:
        """lines: `host:port` or `host:port@zone`. zone: of those without. Raises InvalidConfig."""
        if len(lines) > MEMBERS_MAX:
            raise InvalidConfig(f"peers.members has more than {MEMBERS_MAX} lines")
        self._members = tuple(dict.fromkeys(parse_member(line, zone=zone) for line in lines))

    def members(self) -> tuple[Member, ...]:
        """See Membership."""
        return self._members


class DnsMembers:
    """All addresses of a name, such as of a headless Service; they are in this node's zone.

    The name is looked up when somebody asks and the last answer is old. While that takes its time
    or fails, the last answer holds.
    """

    def __init__(
        self, name: str, port: int, *, zone: str = "", lookup: Lookup | None = None
    ) -> None:
        """lookup: how to find addresses; the system's resolver unless given."""
        self._name = name
        self._port = port
        self._zone = zone
        self._lookup = lookup or _addresses
        self._members: tuple[Member, ...] = ()
        self._looked_s = float("-inf")
        self._lock = threading.Lock()

    def members(self) -> tuple[Member, ...]:
        """See Membership. The first call waits for the resolver."""
        if monotonic() - self._looked_s < REFRESH_S:
            return self._members
        # Only the first look is waited for; later ones are one caller's, and others go on.
        if self._lock.acquire(blocking=not self._members):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._members

    def _look(self) -> None:
        if monotonic() - self._looked_s < REFRESH_S:
            return  # somebody else has, meanwhile
        try:
            found = self._lookup(self._name, self._port)
        except (OSError, UnicodeError):  # UnicodeError: a label of the name is too long
            found = ()
        if found:
            hosts = sorted(set(found))[:MEMBERS_MAX]
            self._members = tuple(Member(host, self._port, self._zone) for host in hosts)
        self._looked_s = monotonic()


def membership_of(settings: PeerSettings) -> Membership:
    """What the settings name; nobody, if they name nothing. Raises InvalidConfig."""
    if settings.dns:
        name, port = parse_address(settings.dns)
        if not port:
            raise InvalidConfig(f"peers.dns: {settings.dns!r} has no port; write name:9871")
        return DnsMembers(name, port, zone=settings.zone)
    return StaticMembers(settings.members, zone=settings.zone)


def _addresses(name: str, port: int) -> list[str]:
    """A and AAAA."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
