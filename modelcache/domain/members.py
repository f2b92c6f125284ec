"""Who is in the cluster, and which of them share chunks: members, zones and cells.

A *cell* is a set of nodes of one zone that exchange chunks with each other, so that traffic stays
where it is cheap and a node has to know at most `CELL_MEMBERS_MAX` others. Every node finds the
same cells from the same list, whatever order the list is in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final, NewType

NodeId = NewType("NodeId", str)

CELL_MEMBERS_MAX: Final = 64  # as many as one node can keep exchanging holdings with, see bench
_NODE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class Priority(IntEnum):
    """Why a model is wanted; any number from 0 to 100 may stand between these."""

    SPECULATIVE = 10  # somebody may want it
    PREWARM = 30  # a fleet declares it
    SCHEDULED = 60  # a pod that will mount it is bound to this node
    MOUNTED = 90  # a pod waits for it now


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One agent's peer plane: where it listens, and where it stands.

    host: a name or an address, without brackets. zone: empty where nobody has said.
    """

    host: str
    port: int
    zone: str = ""

    @property
    def address(self) -> str:
        """`host:port`, as in URLs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_node_id(text: str) -> bool:
    """Whether a name can be a node's: it comes over the network and ends up in headers and logs."""
    return _NODE.fullmatch(text) is not None


def cell_of(
    me: Member, members: Iterable[Member], *, most: int = CELL_MEMBERS_MAX
) -> tuple[Member, ...]:
    """The members of my cell but for me, in a stable order.

    A zone with more than `most` members is cut into equal parts of a list ordered by hash: one
    node more or less then moves only a few others at the parts' borders.
    """
    zone = {member for member in members if member.zone == me.zone} | {me}
    ordered = sorted(zone, key=lambda member: sha256(member.address.encode()).digest())
    cells = -(-len(ordered) // most)
    place = ordered.index(me)
    cell = place * cells // len(ordered)
    first = -(-cell * len(ordered) // cells)
    end = -(-(cell + 1) * len(ordered) // cells)
    return tuple(member for member in ordered[first:end] if member != me)
