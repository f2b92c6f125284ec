"""Audits: who gave wrong bytes, once a blob is complete and not what its origin says.

Of what each peer gave, more and more chunks are read again: twice as many in each round. They are
compared with what a node has that has verified the whole blob, if there is one, for an origin that
every node reads again would be read many times; what differs there is read from the origin, which
decides. Without such a node, or if all is as it is there, chunks are read from the origin at once.
The first that differs tells who lied; all that came from there is fetched anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelcache.planner.board import Board
from modelcache.planner.events import Action, ChunkAudited, Forget, SourceId, peer_of
from modelcache.planner.state import BlobState

READ_FIRST: Final = 1  # chunks of each peer in the first round: a liar rarely lies once
COMPARED_FIRST: Final = 8  # they cost no origin anything, and each round ends in a whole checksum


class Audits:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def doubt(self, state: BlobState, chunks: Sequence[int]) -> bool:
        """Begin a round of audits; False if no chunk is left that a peer could have falsified.

        chunks: that may be at fault; none named: all.
        """
        suspect = sorted(state.came_from.keys() & chunks if chunks else state.came_from)
        if not suspect:
            return False
        left = [chunk for chunk in suspect if self._comparable(state, chunk)]
        if not left:  # nobody is there, or whoever it was compared with was wrong as well
            state.comparing = False
            state.compared.clear()
            left = suspect
        state.finished = False
        count = (COMPARED_FIRST if state.comparing else READ_FIRST) << state.doubted
        state.doubted += 1
        by_source: dict[SourceId, list[int]] = {}
        for chunk in left:
            by_source.setdefault(state.came_from[chunk], []).append(chunk)
        for source in sorted(by_source):
            given = by_source[source]
            step = max(1, len(given) // count)
            for chunk in given[::step][:count]:
                state.audits.add(chunk)
                self._board.audits.append((state.blob, chunk))
        return True

    @staticmethod
    def _comparable(state: BlobState, chunk: int) -> bool:
        """Whether it was not compared yet, and can be with another than who gave it."""
        if not state.comparing or state.shares is None or chunk in state.compared:
            return False
        giver = peer_of(state.came_from[chunk])
        return any(node != giver for node in state.shares.complete)

    def over(self, state: BlobState, actions: list[Action]) -> bool:
        """Whether none is under way. Those of a complete blob that nobody doubts are let go of.

        They were for others who wait for a chunk; once the blob is verified they may have it.
        """
        if state.audits and not state.doubted:
            under_way: set[int] = set()
            for attempt in self._board.attempts.values():
                mine = {chunk for blob, chunk in attempt.remaining if blob == state.blob}
                if attempt.audit and mine:
                    under_way |= mine
                    self._board.cancel(attempt, actions)
            state.audits &= under_way
        return not state.audits

    def audited(self, state: BlobState, event: ChunkAudited, by: SourceId) -> SourceId | None:
        """One chunk was read again, from `by`; returns who has lied, if that is known now."""
        chunk = event.chunk
        state.audits.discard(chunk)
        if by in self._board.peers:
            if event.same:
                state.compared.add(chunk)
                return None
            state.disputed[chunk] = by
            state.audits.add(chunk)
            self._board.audits.appendleft((state.blob, chunk))
            return None
        giver = state.came_from.pop(chunk, None)
        other = state.disputed.pop(chunk, None)
        return other if event.same else giver

    def condemn(self, liar: SourceId, actions: list[Action]) -> None:
        """A peer has lied: nothing that came from it is believed, nor what it differed from.

        Idempotent.
        """
        for state in self._board.blobs.values():
            for chunk in [chunk for chunk, by in state.disputed.items() if by == liar]:
                del state.disputed[chunk]
        for state in list(self._board.blobs.values()):
            if state.finished and state.complete:
                continue  # being verified: that tells
            # Those that are being audited are put right by that.
            chunks = sorted(
                chunk
                for chunk, by in state.came_from.items()
                if by == liar and chunk not in state.audits
            )
            if chunks:
                for chunk in chunks:
                    state.lose(chunk)
                actions.append(Forget(state.blob, tuple(chunks)))
                self._board.enqueue(state)
