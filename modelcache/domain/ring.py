"""Rendezvous hashing: which of some nodes owns a chunk, without anybody to ask.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): each node gets a
score for each chunk, the highest owns it. When a node comes it takes its share from all others
evenly, and when one leaves only its own chunks move.

Shares drawn by hash differ: of 64 nodes the busiest would serve a fifth more than the mean, and all
would wait for it. So each node owns an even part, and none two chunks more than another: what it
scored lowest on goes to the best of those that have room (Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", 2018, with no slack, for a move costs nothing but the
move).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import xxhash

from modelcache.domain.manifests import BlobId

NOBODY: Final = ""
_score = xxhash.xxh3_64_intdigest


class Ring:
    """The owners of one blob's chunks among nodes that come and go.

    Keeps the best score of every chunk, so that a node that comes costs one hash a chunk. Costs
    about 150 bytes a chunk.
    """

    __slots__ = ("_best", "_blob", "_names", "_nodes", "_owners", "_scores")

    def __init__(self, blob: BlobId, count: int) -> None:
        """count: chunks of the blob."""
        self._blob = str(blob)
        self._names = [f"{blob}/{chunk}".encode() for chunk in range(count)]
        self._nodes: dict[str, int] = {}  # and their seeds
        self._best = [NOBODY] * count  # by score alone
        self._scores = [-1] * count
        self._owners = [NOBODY] * count

    @property
    def nodes(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._nodes)

    def owner(self, chunk: int) -> str:
        """The chunk's owner, NOBODY when there are no nodes."""
        return self._owners[chunk]

    def add(self, node: str) -> list[int]:
        """Let a node in; returns the chunks that have another owner now. Idempotent."""
        if node in self._nodes:
            return []
        seed = self._nodes[node] = _score(node.encode())
        best, scores = self._best, self._scores
        for chunk, name in enumerate(self._names):
            score = _score(name, seed)
            if score > scores[chunk]:
                scores[chunk] = score
                best[chunk] = node
        return self._balance()

    def remove(self, node: str) -> list[int]:
        """Take a node out; returns the chunks that have another owner now. Idempotent."""
        if self._nodes.pop(node, None) is None:
            return []
        for chunk, owner in enumerate(self._best):
            if owner == node:
                self._best[chunk], self._scores[chunk] = self._rank(chunk, self._nodes)
        return self._balance()

    def second(self, chunk: int) -> str:
        """Who would own the chunk without its owner; NOBODY where there is no second node."""
        owner = self._owners[chunk]
        others = {node: seed for node, seed in self._nodes.items() if node != owner}
        return self._rank(chunk, others)[0]

    def _balance(self) -> list[int]:
        """Give everybody an even part; returns the chunks that have another owner now."""
        owners = list(self._best)
        room = self._parts()
        loads: dict[str, list[int]] = {node: [] for node in room}
        for chunk, node in enumerate(owners if room else ()):
            loads[node].append(chunk)
        surplus: list[int] = []
        for node, owned in loads.items():
            if len(owned) > room[node]:
                owned.sort(key=self._scores.__getitem__, reverse=True)
                surplus += owned[room[node] :]
            room[node] -= min(room[node], len(owned))
        for chunk in sorted(surplus):
            free = {node: self._nodes[node] for node, left in room.items() if left}
            owners[chunk], _ = self._rank(chunk, free)
            room[owners[chunk]] -= 1
        before, self._owners = self._owners, owners
        return [chunk for chunk, owner in enumerate(owners) if owner != before[chunk]]

    def _parts(self) -> dict[str, int]:
        """How many chunks each node owns: all the same, and one more for some, who draw lots."""
        if not self._nodes:
            return {}
        even, left = divmod(len(self._names), len(self._nodes))
        drawn = first_of(self._blob, self._nodes)
        return {node: even + (place < left) for place, node in enumerate(drawn)}

    def _rank(self, chunk: int, nodes: Mapping[str, int]) -> tuple[str, int]:
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
