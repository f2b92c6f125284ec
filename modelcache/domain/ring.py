"""Rendezvous hashing: which of some nodes owns a chunk, without anybody to ask.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): each node gets a
score for each chunk, the highest owns it. When a node comes it takes its share from all others
evenly, and when one leaves only its own chunks move.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import xxhash

from modelcache.domain.manifests import BlobId

NOBODY: Final = ""
_score = xxhash.xxh3_64_intdigest


class Ring:
    """The owners of one blob's chunks among nodes that come and go.

    Keeps the best score of every chunk, so that a node that comes costs one hash a chunk. Costs
    about 100 bytes a chunk.
    """

    __slots__ = ("_names", "_nodes", "_owners", "_scores")

    def __init__(self, blob: BlobId, count: int) -> None:
        """count: chunks of the blob."""
        self._names = [f"{blob}/{chunk}".encode() for chunk in range(count)]
        self._nodes: dict[str, int] = {}  # and their seeds
        self._owners = [NOBODY] * count
        self._scores = [-1] * count

    @property
    def nodes(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._nodes)

    def owner(self, chunk: int) -> str:
        """The chunk's owner, NOBODY when there are no nodes."""
        return self._owners[chunk]

    def add(self, node: str) -> list[int]:
        """Let a node in; returns the chunks it owns now. Idempotent."""
        if node in self._nodes:
            return []
        seed = self._nodes[node] = _score(node.encode())
        owners, scores = self._owners, self._scores
        gained = []
        for chunk, name in enumerate(self._names):
            score = _score(name, seed)
            if score > scores[chunk]:
                scores[chunk] = score
                owners[chunk] = node
                gained.append(chunk)
        return gained

    def remove(self, node: str) -> list[int]:
        """Take a node out; returns the chunks that have another owner now. Idempotent."""
        if self._nodes.pop(node, None) is None:
            return []
        moved = [chunk for chunk, owner in enumerate(self._owners) if owner == node]
        for chunk in moved:
            self._owners[chunk], self._scores[chunk] = self._best(chunk, self._nodes)
        return moved

    def second(self, chunk: int) -> str:
        """Who would own the chunk without its owner; NOBODY where there is no second node."""
        owner = self._owners[chunk]
        others = {node: seed for node, seed in self._nodes.items() if node != owner}
        return self._best(chunk, others)[0]

    def _best(self, chunk: int, nodes: dict[str, int]) -> tuple[str, int]:
        name = self._names[chunk]
        best, best_score = NOBODY, -1
        for node, seed in nodes.items():
            score = _score(name, seed)
            if score > best_score:
                best, best_score = node, score
        return best, best_score


def first_of(name: str, nodes: Iterable[str]) -> list[str]:
    """Nodes in the order in which they are responsible for something that has a name."""
    return sorted(nodes, key=lambda node: (-_score(name.encode(), _score(node.encode())), node))
