"""Other nodes that have this node's name.

A node is known to others by its name, so two of one name are one to everybody, and to each other
they are nobody: neither gets a byte from the other. That is a mistake in somebody's settings, and
nothing would show it but slow pulls.
"""

from __future__ import annotations

import threading
from typing import Final

from modelcache.domain.members import Member, NodeId
from modelcache.peers.messages import Announcement

NAMESAKES_MAX: Final = 64  # a cell's worth; a fleet where all are called the same says so with few


class Namesakes:
    """Thread-safe."""

    def __init__(self, me: NodeId, life: str) -> None:
        """life: of this process, by which it knows its own announcements."""
        self._me = me
        self._life = life
        self._lock = threading.Lock()
        self._known: dict[Member, str] = {}

    def look(self, said: Announcement, member: Member) -> str | None:
        """What a node at an address says of itself; a warning if it is a namesake not known yet."""
        with self._lock:
            if said.node != self._me or said.leaving or said.life in {"", self._life}:
                self._known.pop(member, None)
                return None
            if member in self._known or len(self._known) >= NAMESAKES_MAX:
                return None
            self._known[member] = warning = (
                f"the node at {member.address} is called {self._me} too: the two do not share "
                "with each other; give each node a name of its own (agent.node)"
            )
            return warning

    def warnings(self) -> list[str]:
        """One line for each that is known."""
        with self._lock:
            return sorted(self._known.values())
