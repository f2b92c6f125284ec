"""Who should give which chunk of one blob: the ring, seen from one of its nodes.

Nodes that fetch a blob share the work of reading it from a *seed*: a node that has the blob
complete if there is one, else the origin. Rendezvous hashing gives each chunk an owner among them;
the owner reads it from the seed, all others from the owner. Where as many nodes have the blob as
want it, those are asked at once: a ring would only add a step.

There are two exceptions by chunk: a node other than the owner that has a chunk (it began before
the owner came) is asked instead of making the owner read it once more, and a chunk that somebody
expects from this node is this node's, whatever the ring says.
"""

from __future__ import annotations

from collections.abc import Iterable

from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ChunkGrid
from modelcache.domain.ring import Ring
from modelcache.planner.events import SourceId, peer_of, peer_source
from modelcache.planner.lots import ORIGIN


class Shares:
    """See the module. Chunks returned by its methods are those to be assigned anew."""

    __slots__ = (
        "_had",
        "_holdings",
        "_me",
        "_mine",
        "_names",
        "_ring",
        "_seeds",
        "_slow",
        "_stolen",
        "complete",
        "grid",
    )

    def __init__(self, blob: BlobId, grid: ChunkGrid, me: NodeId) -> None:
        self.grid = grid
        self.complete: tuple[NodeId, ...] = ()  # nodes that have all of the blob, sorted
        self._me = me
        self._ring = Ring(blob, grid.count)
        self._ring.add(me)
        self._seeds = Ring(blob, grid.count)  # of the complete ones
        self._holdings: dict[NodeId, Holding] = {}
        self._had: dict[int, NodeId] = {}  # chunks, and a fetching or leaving node that has each
        self._stolen: set[int] = set()  # chunks that the origin is to give, whoever has them
        self._mine: set[int] = set()  # chunks that somebody expects from here
        self._slow: set[NodeId] = set()  # nodes that are asked only where nobody else can be
        self._names: dict[str, SourceId] = {}

    @property
    def fetchers(self) -> int:
        """Nodes that fetch the blob, this one included."""
        return len(self._ring.nodes)

    def source(self, chunk: int) -> SourceId:
        """Which lot a chunk belongs to."""
        if chunk in self._stolen:
            return ORIGIN
        if self.direct:
            return self._name(self._seeds.owner(chunk))
        if chunk not in self._mine:
            owner = self._ring.owner(chunk)
            other = self._had.get(chunk)
            if other is not None and not self.node_has(NodeId(owner), chunk):
                return self._name(other)
            if owner != self._me:
                return self._name(owner)
        return self.seed(chunk)

    def seed(self, chunk: int) -> SourceId:
        """Who gives a chunk that no other node owes us."""
        return self._name(self._seeds.owner(chunk)) if self.complete else ORIGIN

    @property
    def direct(self) -> bool:
        """Whether nodes that have the blob are asked without a ring."""
        return len(self.complete) >= len(self._ring.nodes)

    def vouches(self, source: SourceId) -> bool:
        """Whether a peer has verified the whole blob."""
        node = peer_of(source)
        return node is not None and node in self.complete

    def told(self, node: NodeId, holding: Holding) -> Iterable[int]:
        """A node has said what it has of the blob."""
        before = self._holdings.get(node)
        if holding.state is HoldingState.LEAVING:
            return self._leaving(node, holding)
        complete = holding.state is HoldingState.COMPLETE
        # Chunks of another grid can be had from a node that has all of them, and only from it.
        if not complete and (holding.state is HoldingState.NONE or holding.grid != self.grid):
            return self.left(node)
        self._holdings[node] = holding
        if complete:
            self._slow.discard(node)  # it may be the only one that has what an origin has lost
        if node in self._slow or (complete and node in self.complete):
            return ()
        if complete:
            self.complete = tuple(sorted((*self.complete, node)))
            self._seeds.add(node)
            self._ring.remove(node)
            return range(self.grid.count)
        if node in self.complete:  # it has lost the blob meanwhile
            self._not_complete(node)
            self._ring.add(node)
            self._note(node, holding)
            return range(self.grid.count)
        moved = self._ring.add(node)
        if before is None or before.chunks != holding.chunks:
            moved += self._note(node, holding)
        return self._moved(moved)

    def _leaving(self, node: NodeId, holding: Holding) -> Iterable[int]:
        """A node owes us nothing any more, and has chunks that nobody else may have."""
        moved = list(self.left(node))
        if holding.grid == self.grid:
            self._holdings[node] = holding
            moved += self._note(node, holding)
        return moved

    def left(self, node: NodeId) -> Iterable[int]:
        """A node is not to be asked any more."""
        if self._holdings.pop(node, None) is None:
            return ()
        lost = self._not_had(node)
        if node in self.complete:
            self._not_complete(node)
            return range(self.grid.count)
        return self._moved(self._ring.remove(node) + lost)

    def demote(self, node: NodeId) -> Iterable[int]:
        """A node without all of it is so slow that others read its share, also what it has.

        What it has stays known: it may be asked once more for what comes from nobody else.
        """
        self._slow.add(node)
        return self._moved(self._ring.remove(node) + self._not_had(node))

    def _not_had(self, node: NodeId) -> list[int]:
        """Chunks that are not to be asked of a node any more because it has them."""
        lost = [chunk for chunk, other in self._had.items() if other == node]
        for chunk in lost:
            del self._had[chunk]
        return lost

    def _moved(self, chunks: list[int]) -> Iterable[int]:
        """Where nodes have all of it, one fetcher may decide whether they are asked at once."""
        return range(self.grid.count) if self.complete else chunks

    def steal(self, chunk: int) -> None:
        """Let the origin give a chunk, whoever has it."""
        self._stolen.add(chunk)

    def expected(self, chunk: int) -> bool:
        """Somebody expects a chunk from here; False if that is nothing new."""
        if chunk in self._mine:
            return False
        self._mine.add(chunk)
        return True

    def node_has(self, node: NodeId, chunk: int) -> bool:
        """Whether one node has said that it can give a chunk."""
        holding = self._holdings.get(node)
        return holding is not None and holding.has(chunk)

    def read_by(self, node: NodeId) -> int | None:
        """Chunks that a node has read or is reading; None if it does not fetch the blob."""
        holding = self._holdings.get(node)
        if holding is None or holding.state is not HoldingState.FETCHING:
            return None
        return int.from_bytes(holding.chunks, "little").bit_count()

    def second(self, chunk: int) -> str:
        """Who would own a chunk if its owner were not there."""
        return self._ring.second(chunk)

    def has(self, chunk: int) -> list[NodeId]:
        """The nodes that can give a chunk at once, sorted."""
        return [node for node in sorted(self._holdings) if self._holdings[node].has(chunk)]

    def _note(self, node: NodeId, holding: Holding) -> list[int]:
        """Which chunks the node has that nobody was known to have."""
        found = [chunk for chunk in holding.listed() if chunk not in self._had]
        self._had.update(dict.fromkeys(found, node))
        return found

    def _not_complete(self, node: NodeId) -> None:
        self.complete = tuple(each for each in self.complete if each != node)
        self._seeds.remove(node)

    def _name(self, node: str) -> SourceId:
        name = self._names.get(node)
        if name is None:
            name = self._names[node] = peer_source(NodeId(node))
        return name
