"""The other nodes of the cell: under which name and address they answer, and when they last did."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any, Final

from modelcache.domain.members import Member, NodeId

LOST_AFTER: Final = 2  # announcements in a row that a node did not answer


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What is known of one node. fetching: it said so when it was last heard."""

    node: NodeId
    member: Member
    heard_s: float
    failures: int = 0
    fetching: bool = False
    draining: bool = False
    trouble: str = ""


class Neighbours:
    """Thread-safe. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_node: dict[NodeId, Neighbour] = {}

    def heard(
        self, node: NodeId, member: Member, now_s: float, *, fetching: bool, draining: bool
    ) -> None:
        """A node has answered, or announced itself."""
        with self._lock:
            for other in [n for n in self._by_node.values() if n.member == member]:
                if other.node != node:  # the address is another's now
                    del self._by_node[other.node]
            self._by_node[node] = Neighbour(
                node, member, now_s, fetching=fetching, draining=draining
            )

    def failed(self, member: Member, trouble: str) -> NodeId | None:
        """A node has not answered; its name if it counts as gone from now on."""
        with self._lock:
            for node, known in self._by_node.items():
                if known.member == member:
                    failures = known.failures + 1
                    self._by_node[node] = replace(
                        known, failures=failures, fetching=False, trouble=trouble
                    )
                    return node if failures == LOST_AFTER else None
        return None

    def left(self, node: NodeId) -> None:
        """A node has said good-bye."""
        with self._lock:
            self._by_node.pop(node, None)

    def member(self, node: NodeId) -> Member | None:
        """Where a node listens."""
        with self._lock:
            known = self._by_node.get(node)
        return known.member if known else None

    def reachable(self) -> list[Member]:
        """Where nodes are that answer, and stay."""
        with self._lock:
            return [
                known.member
                for known in self._by_node.values()
                if known.failures < LOST_AFTER and not known.draining
            ]

    def names(self) -> list[NodeId]:
        """Nodes that answer, and stay."""
        with self._lock:
            return sorted(
                node
                for node, known in self._by_node.items()
                if known.failures < LOST_AFTER and not known.draining
            )

    def fetching(self) -> int:
        """How many of them are fetching something."""
        with self._lock:
            return sum(known.fetching for known in self._by_node.values())

    def table(self, now_s: float) -> list[dict[str, Any]]:
        """One row a node, for people."""
        with self._lock:
            known = sorted(self._by_node.values(), key=lambda each: each.node)
        return [
            {
                "node": each.node,
                "address": each.member.address,
                "zone": each.member.zone,
                "heard_s_ago": round(now_s - each.heard_s, 1),
                "reachable": each.failures < LOST_AFTER,
                "fetching": each.fetching,
                "draining": each.draining,
                "trouble": each.trouble,
            }
            for each in known
        ]
