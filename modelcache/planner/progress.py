"""How far this node is with what it reads for others, beside how far they are with theirs.

Nodes that fetch together read a seed on as many connections each, and should be done together. They
are not: among connections that share a link, some get several times what others get, and keep it
for seconds. The nodes of those have then more to send than their uplinks carry, while the uplinks
of the others have nothing to do. So a node that is ahead of most of the others reads less, or not
at all for a moment, and one that is behind reads more. And one that has read all of its part reads
what others have not come to yet: it has room on its uplink as well.

It compares what each node has said that it has read with what was read here at that moment, so that
it does not matter how old the news is. It owns that comparison, and the choice of what to take over
from whom; whose a chunk is, is decided by `Shares`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.planner.board import Board
from modelcache.planner.events import SourceId, peer_of
from modelcache.planner.state import BlobState

FRESH_S: Final = 0.25  # a comparison is not repeated sooner
MOVED_S: Final = 5.0  # two announcements: nodes that read nothing for so long are not waited for
PACED_S: Final = 2.0  # an announcement: what is said in less says little of a peer's pace
LOOKED_PER_PEER: Final = 32  # chunks looked at for some that a peer has not read
UNREAD_MOST: Final = 16  # of one peer's; who has more is not told apart
RANKED_MOST: Final = 64  # chunks looked at for one that would be ours

Unread = tuple[BlobState, int]


def unread(board: Board, source: SourceId, look: int) -> Iterator[Unread]:
    """Chunks that wait for a peer and that it has not read, the last first.

    look: how many of those that wait are looked at.
    """
    node = peer_of(source)
    assert node is not None, "a peer"  # noqa: S101
    for _, _, blob in reversed(board.shares[source]):
        state = board.blobs[blob]
        shares = state.shares
        if shares is None or shares.complete:
            continue
        waiting = state.pending.last_ones(source, look)
        look -= len(waiting)
        yield from ((state, chunk) for chunk in waiting if not shares.node_has(node, chunk))
        if look <= 0:
            return


@dataclass(slots=True)
class _Pace:
    """How quickly a peer begins chunks, from what it has said."""

    since_s: float
    said_s: float
    chunks: int = 0

    def said(self, more: int, now_s: float) -> None:
        """It has begun so many more."""
        self.chunks += more
        self.said_s = now_s

    def unsaid(self, now_s: float) -> int:
        """How many it may have begun since."""
        known_s = max(self.said_s - self.since_s, PACED_S)
        return math.ceil(self.chunks / known_s * (now_s - self.said_s))


class Progress:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._limits = board.limits
        self._reads: dict[SourceId, dict[BlobId, int]] = {}  # chunks that peers have read
        self._news: dict[SourceId, None] = {}  # peers that have said more since the comparison
        self._leads: dict[SourceId, int] = {}  # chunks more that were read here, when they said so
        self._moved_s: dict[SourceId, float] = {}  # when a peer had read more than before
        self._paces: dict[SourceId, _Pace] = {}
        self._compared_s = float("-inf")
        self._ahead = 0  # of the median peer, in chunks
        self._moving = False  # most peers do read
        self._share = 0  # chunks that are ours to read
        self._taken = 0  # and that were another's
        self._begun = False  # something has been read

    def begin(self) -> None:
        """Another transfer begins: what is ours to read is counted anew."""
        self._share = self._taken = 0
        self._paces.clear()
        self._begun = False

    def heard(self, state: BlobState, source: SourceId, now_s: float) -> None:
        """A peer has said what it has of a blob."""
        node, shares = peer_of(source), state.shares
        read = shares.read_by(node) if shares is not None and node is not None else None
        reads = self._reads.setdefault(source, {})
        if read is None:
            reads.pop(state.blob, None)
        else:
            if read > reads.get(state.blob, read):
                self._moved_s[source] = now_s
            pace = self._paces.setdefault(source, _Pace(now_s, now_s))
            pace.said(max(0, read - reads.get(state.blob, 0)), now_s)
            reads[state.blob] = read
        self._news[source] = None

    def left(self, source: SourceId) -> None:
        """A peer is not to be compared with any more."""
        for known in (self._reads, self._news, self._leads, self._moved_s, self._paces):
            known.pop(source, None)

    def connections(self, least: int, now_s: float) -> int:
        """On how many a seed may be read where nodes usually do it on `least`."""
        self._compare(now_s)
        if self._taken:  # it is what others are behind with that is read
            return least
        margin = max(self._limits.ahead_min, int(self._share * self._limits.ahead_share))
        if self._ahead > 3 * margin and self._moving:
            return 0
        if self._ahead > margin or not self._has_begun():
            return 1
        if self._ahead < -3 * margin:
            return 4 * least
        return 2 * least if self._ahead < -margin else least

    def _has_begun(self) -> bool:
        self._begun = self._begun or any(1 in state.own for state in self._board.blobs.values())
        return self._begun

    def _reading(self, state: BlobState) -> int:
        """Chunks on their way that will be passed on."""
        board = self._board
        sources = (board.attempts[attempts[0]].source for attempts in state.flying.values())
        return sum(state.vouched(source, board.peers) for source in sources)

    def surplus(self, now_s: float) -> list[Unread]:
        """Chunks that others have not come to yet, to be read here next.

        As many as there is room for at a seed, and in all not more than `take_over_share` of what
        is ours: whoever reads a chunk sends it to all others. First those which would be ours
        without their owner, for no two nodes take the same of these. What a node may have begun
        since it last said what it reads stays its own.
        """
        limits, board = self._limits, self._board
        self._compare(now_s)
        room = min(
            limits.seed_connections_min - board.origins_in_flight,
            int(self._share * limits.take_over_share) - self._taken,
        )
        if room <= 0:
            return []
        left = {source: self._left(source, now_s) for source in board.shares}
        most_left = sorted(left.items(), key=lambda each: (-len(each[1]), each[0]))
        ours = list(islice(self._ours(most_left), room))
        chosen = ours or list(islice(self._any(most_left), room))
        self._taken += len(chosen)
        return chosen

    def _left(self, source: SourceId, now_s: float) -> list[Unread]:
        """What a peer will not have come to yet, the last first, up to a number."""
        found = list(unread(self._board, source, LOOKED_PER_PEER))
        pace = self._paces.get(source)
        unsaid = pace.unsaid(now_s) if pace is not None else 0
        return found[: max(0, len(found) - unsaid)][:UNREAD_MOST]

    def _ours(self, left: list[tuple[SourceId, list[Unread]]]) -> Iterator[Unread]:
        for state, chunk in islice(chain.from_iterable(each for _, each in left), RANKED_MOST):
            if state.shares is not None and state.shares.second(chunk) == self._board.me:
                yield state, chunk

    def _any(self, left: list[tuple[SourceId, list[Unread]]]) -> Iterator[Unread]:
        """One of each node, seldom the one that another node would choose.

        Not where so little is left that others would.
        """
        if sum(len(each) for _, each in left) < len(self._reads):
            return
        for source, each in left:
            if each:
                yield each[zlib.crc32(f"{self._board.me} {source}".encode()) % len(each)]

    def _compare(self, now_s: float) -> None:
        if now_s - self._compared_s < FRESH_S:
            return
        self._compared_s = now_s
        here: dict[BlobId, int] = {}
        share = 0
        for state in self._board.blobs.values():
            if state.shares is not None:
                here[state.blob] = state.own.count(1) + self._reading(state)
                share += -(-state.grid.count // state.shares.fetchers)
        self._share = max(share, self._share)
        for source in self._news:
            reads = self._reads.get(source, {})
            both = [blob for blob in reads if blob in here]
            self._reads[source] = {blob: reads[blob] for blob in both}
            self._leads[source] = sum(here[blob] - reads[blob] for blob in both)
        self._news.clear()
        leads = sorted(self._leads.values())
        self._ahead = leads[len(leads) // 2] if leads else 0
        since_s = now_s - MOVED_S
        moving = sum(self._moved_s.get(source, since_s - 1) >= since_s for source in self._leads)
        self._moving = 2 * moving > len(leads)
