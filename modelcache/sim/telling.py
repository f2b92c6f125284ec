"""What nodes of a cell tell each other: who fetches, who has what, and who has gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from modelcache.domain.holdings import Holding
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.planner import Paused, PeerLeft, PeerTold, SourceId, peer_of

if TYPE_CHECKING:
    from modelcache.sim.node import Node


class Teller:
    """One node's side of it. Messages take half a round trip, and no bandwidth.

    What is no news is not repeated to the planner, but for peers that it has left alone: in
    production every announcement is passed on, so this saves events and changes nothing.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[tuple[NodeId, BlobId], Holding] = {}
        self._gone: dict[NodeId, None] = {}  # peers that are known to be dead
        self._said: dict[BlobId, bytes] = {}  # at the last refresh

    def introduce(self) -> None:
        """Tell the cell what this node wants, hear what it has, and let the planner begin."""
        node = self._node
        self.announce(tuple(node.copies))
        node.site.clock.after(node.site.scenario.node.round_trip_s, self._introduced, None)
        if node.site.scenario.refresh_s:
            node.site.clock.after(node.site.scenario.refresh_s, self._refresh, None)

    def announce(self, blobs: tuple[BlobId, ...]) -> None:
        """The cell hears what this node has of some blobs."""
        node = self._node
        if node.cell:
            node.site.clock.after(node.site.scenario.node.round_trip_s / 2, self._announced, blobs)

    def _announced(self, blobs: tuple[BlobId, ...]) -> None:
        node = self._node
        if node.alive:
            holdings = [node.copies[blob].holding() for blob in blobs]
            for other in node.cell:
                other.teller.hear(node, holdings)

    def _introduced(self, _: None) -> None:
        """The cell has answered the announcement."""
        node = self._node
        if not node.alive:
            return
        wanted = tuple(node.unfinished)
        for other in node.cell:
            if other.alive:
                copies = (other.copies[blob] for blob in wanted if blob in other.copies)
                self.hear(other, [copy.holding() for copy in copies])
            else:
                self._gone[other.name] = None
        node.feed(Paused(False))

    def _refresh(self, _: None) -> None:
        """Tell the cell what has changed, and find out who is dead."""
        node = self._node
        if not node.alive or not node.unfinished:
            return
        news = []
        for blob in node.unfinished:
            holding = node.copies[blob].holding()
            if self._said.get(blob) != holding.chunks:
                self._said[blob] = holding.chunks
                news.append(holding)
        for other in node.cell:
            if other.alive:
                other.teller.hear(node, news)
            elif other.name not in self._gone:
                self._gone[other.name] = None
                node.feed(PeerLeft(other.source))
        node.site.clock.after(node.site.scenario.refresh_s, self._refresh, None)

    def hear(self, other: Node, holdings: Iterable[Holding]) -> None:
        """Another node says what it has."""
        if not self._node.alive:
            return
        for holding in holdings:
            key = (other.name, holding.blob)
            if holding.blob in self._node.unfinished and self._told.get(key) != holding:
                self._told[key] = holding
                self._node.feed(PeerTold(other.source, holding))

    def hear_again(self, source: SourceId, after_s: float) -> None:
        """The planner forgets a peer until a moment; the first announcement after it counts."""
        site = self._node.site
        site.clock.at(after_s + site.scenario.refresh_s, self._heard_again, source)

    def _heard_again(self, source: SourceId) -> None:
        name = peer_of(source)
        other = self._node.peers[name] if name is not None else None
        if other is None or not other.alive:
            return
        for blob in list(self._node.unfinished):
            self._told.pop((other.name, blob), None)
            if blob in other.copies:
                self.hear(other, [other.copies[blob].holding()])
