"""Peers: who has joined, who is left alone for a while, and who has lied.

It turns what peers say and do into shares of the work (`Shares`), which is all that dispatch looks
at. It owns quarantine, the search for stragglers, and audits.

An audit finds out who gave wrong bytes, once a blob is complete and not what its origin says. Of
what each peer gave, more and more chunks are read again from the origin: twice as many in each
round. The first that differs tells who lied; all that came from there is fetched anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelcache.domain.holdings import HoldingState
from modelcache.domain.manifests import BlobId
from modelcache.planner.board import Board
from modelcache.planner.dispatch import Dispatch
from modelcache.planner.events import (
    Action,
    ChunkAudited,
    ChunkWanted,
    Forget,
    PeerTold,
    Quarantine,
    SourceId,
    peer_of,
)
from modelcache.planner.lots import ORIGIN
from modelcache.planner.shares import Shares
from modelcache.planner.state import BlobState, PeerState

AUDITS_FIRST: Final = 1  # chunks of each peer in the first round: a liar rarely lies once
STEALS_MAX: Final = 8  # chunks taken from peers' shares at one check


class Swarm:
    """See the module."""

    def __init__(self, board: Board, dispatch: Dispatch) -> None:
        self._board = board
        self._dispatch = dispatch
        self._limits = board.limits
        self._check_s = 0.0

    @property
    def check_s(self) -> float:
        """When stragglers are looked for next."""
        return self._check_s

    def due(self, now_s: float) -> bool:
        """Whether it is time for that."""
        return bool(self._board.shares) and now_s >= self._check_s

    # Joining and leaving

    def told(self, event: PeerTold, now_s: float) -> None:
        """A peer has said what it has of a blob."""
        state = self._board.blobs.get(event.holding.blob)
        node = peer_of(event.source)
        if state is None or node is None or node == self._board.me or not state.ranges:
            return
        peer = self._board.peers.setdefault(event.source, PeerState(self._limits))
        if now_s < peer.quarantined_until_s:
            return
        if state.small:
            if event.holding.state is HoldingState.COMPLETE:
                state.holders[event.source] = None
            else:
                state.holders.pop(event.source, None)
            return
        if state.shares is None:
            if event.holding.state is HoldingState.NONE:
                return
            state.shares = Shares(state.blob, state.grid, self._board.me)
            state.pending.share(state.grid.count, state.shares.source)
        state.pending.move(state.shares.told(node, event.holding))
        self._board.settle_all(state)

    def left(self, source: SourceId) -> None:
        """A peer is not to be asked for anything more."""
        for state in self._board.blobs.values():
            self._left_blob(state, source)

    def denied(self, source: SourceId, blob: BlobId) -> None:
        """A peer does not have a blob, whatever it said."""
        state = self._board.blobs.get(blob)
        if state is not None:
            self._left_blob(state, source)

    def wanted(self, event: ChunkWanted) -> None:
        """Somebody waits for a chunk: it is ours now, and goes first."""
        state = self._board.blobs.get(event.blob)
        if state is None or state.small or not 0 <= event.chunk < state.grid.count:
            return
        if state.stored[event.chunk]:
            self._vouch(state, event.chunk)
        if not state.pending.waits(event.chunk):
            return
        if state.shares is not None and state.shares.expected(event.chunk):
            state.pending.move((event.chunk,))
            self._board.settle_all(state)
        self._board.urgent.append((event.blob, event.chunk))

    def _vouch(self, state: BlobState, chunk: int) -> None:
        """Let a chunk be passed on that came from a peer, by reading it again from the origin.

        Two nodes that each want from the other what neither may give would wait for ever. It takes
        a ring that has changed meanwhile, so it is rare.
        """
        if chunk in state.came_from and chunk not in state.audits:
            state.audits.add(chunk)
            self._board.audits.append((state.blob, chunk))

    def _left_blob(self, state: BlobState, source: SourceId) -> None:
        node = peer_of(source)
        state.holders.pop(source, None)
        if state.shares is not None and node is not None:
            state.pending.move(state.shares.left(node))
            self._board.settle_all(state)

    # Quarantine

    def failed(self, source: SourceId, now_s: float, actions: list[Action], *, bad: bool) -> None:
        """An attempt at a peer has failed; twice in a row, or with wrong bytes, it has a rest."""
        peer = self._board.peers[source]
        peer.failures_in_row += 1
        if bad or peer.failures_in_row > 1:
            self.quarantine(source, now_s, actions)

    def quarantine(
        self, source: SourceId, now_s: float, actions: list[Action], *, lied: bool = False
    ) -> None:
        """Ask nothing of a peer for a while, longer each time."""
        peer = self._board.peers[source]
        if now_s < peer.quarantined_until_s and not lied:
            return
        limits = self._limits
        rest_s = min(limits.quarantine_max_s, limits.quarantine_first_s * 2**peer.quarantines)
        peer.quarantines += 1
        peer.quarantined_until_s = now_s + (limits.quarantine_lied_s if lied else rest_s)
        self.left(source)
        actions.append(Quarantine(source, peer.quarantined_until_s, lied))

    # Stragglers

    def check(self, now_s: float, actions: list[Action]) -> bool:
        """Look for peers whose share will come too late; True if chunks were moved.

        Call it when it is due and nothing more can be asked of anybody: then it is peers that hold
        us up.
        """
        self._check_s = now_s + self._limits.check_every_s
        return self._leave_straggler(now_s, actions) or self._steal(now_s)

    def late(self, source: SourceId, now_s: float, actions: list[Action]) -> None:
        """An attempt at a peer has been hedged: two in a row, and nothing came in between."""
        peer = self._board.peers[source]
        peer.late += 1
        if peer.late > 1:
            self.quarantine(source, now_s, actions)

    def _backlog_s(self, source: SourceId, now_s: float) -> float:
        """How long what a peer still owes will take at its present rate."""
        board = self._board
        peer = board.peers[source]
        owed = peer.in_flight * self._chunk_bytes(source) + sum(
            board.blobs[blob].pending.count(source) * board.blobs[blob].grid.chunk_bytes
            for _, _, blob in board.shares.get(source, ())
        )
        rate = peer.rate_at(now_s, self._limits.rate_memory_s)
        return owed / max(rate, 1.0)

    def _chunk_bytes(self, source: SourceId) -> int:
        queue = self._board.shares.get(source)
        return self._board.blobs[queue[0][2]].grid.chunk_bytes if queue else 0

    def _leave_straggler(self, now_s: float, actions: list[Action]) -> bool:
        """Leave out the one peer that will be done long after all others, ourselves included."""
        backlogs = sorted(
            (self._backlog_s(source, now_s), source)
            for source, peer in self._board.peers.items()
            if len(peer.durations[0]) >= self._limits.hedge_samples_min
            and (peer.in_flight or source in self._board.shares)
        )
        if not backlogs:
            return False
        slowest_s, slowest = backlogs[-1]
        others_s = backlogs[len(backlogs) // 2][0] if len(backlogs) > 2 else 0.0  # noqa: PLR2004
        others_s = max(others_s, self._own_s(now_s))
        limits = self._limits
        if slowest_s <= max(limits.slow_peer_factor * others_s, others_s + limits.slow_peer_min_s):
            return False
        if len(backlogs) <= 2 and not self._is_quicker(slowest_s):  # noqa: PLR2004 - no majority
            return False
        self.quarantine(slowest, now_s, actions)
        return True

    def _own_s(self, now_s: float) -> float:
        """How long our own share will take."""
        board = self._board
        left = sum(
            board.blobs[blob].pending.count(ORIGIN) * board.blobs[blob].grid.chunk_bytes
            for _, _, blob in board.large
        )
        rate = sum(
            source.rate_at(now_s, self._limits.rate_memory_s) for source in board.sources.values()
        )
        return left / max(rate, 1.0) if left else 0.0

    def _knows_rates(self) -> bool:
        """Whether enough has come from peers to judge them by."""
        peers = self._board.peers.values()
        return any(len(peer.durations[0]) >= self._limits.hedge_samples_min for peer in peers)

    def _is_quicker(self, peers_s: float) -> bool:
        """Whether origins alone would bring all that peers owe in much less than `peers_s`."""
        board = self._board
        rate = max((source.best_rate for source in board.sources.values()), default=0.0)
        owed = sum(
            board.blobs[blob].pending.count(source) * board.blobs[blob].grid.chunk_bytes
            for source, queue in board.shares.items()
            for _, _, blob in queue
        )
        return rate > 0 and self._limits.steal_factor * owed / rate < peers_s

    def _steal(self, now_s: float) -> bool:
        """Read from the origin what peers are long in giving, if it is that much faster.

        From the end of the longest share: its owner is likely to come there last.
        """
        board = self._board
        if board.large or not board.sources or not self._knows_rates():
            return False
        backlogs = [(self._backlog_s(source, now_s), source) for source in board.shares]
        longest_s, longest = max(backlogs)
        if longest_s < self._limits.slow_peer_min_s or not self._is_quicker(longest_s):
            return False
        moved = False
        for _ in range(STEALS_MAX):
            queue = board.shares.get(longest)
            if not queue:
                break
            state = board.blobs[queue[-1][2]]
            if state.shares is None or state.shares.complete:
                break
            chunk = state.pending.take_last(longest)
            state.shares.expected(chunk)
            state.pending.add(chunk, chunk + 1)
            board.settle_all(state)
            moved = True
        return moved

    # Audits

    def doubt(self, state: BlobState, chunks: Sequence[int]) -> bool:
        """Begin a round of audits; False if no chunk is left that a peer could have falsified.

        chunks: that may be at fault; none named: all.
        """
        by_source: dict[SourceId, list[int]] = {}
        for chunk in sorted(state.came_from.keys() & chunks if chunks else state.came_from):
            by_source.setdefault(state.came_from[chunk], []).append(chunk)
        if not by_source:
            return False
        state.finished = False
        count = AUDITS_FIRST << state.doubted
        state.doubted += 1
        for source in sorted(by_source):
            given = by_source[source]
            step = max(1, len(given) // count)
            for chunk in given[::step][:count]:
                state.audits.add(chunk)
                self._board.audits.append((state.blob, chunk))
        return True

    def audited(self, event: ChunkAudited, now_s: float, actions: list[Action]) -> bool:
        """One chunk was read again; True when the blob may be looked at as a whole again."""
        state = self._board.blobs.get(event.blob)
        if state is None:
            return False
        state.audits.discard(event.chunk)
        source = state.came_from.pop(event.chunk, None)
        if not event.same and source is not None:
            self._condemn(source, now_s, actions)
        return not state.audits

    def _condemn(self, source: SourceId, now_s: float, actions: list[Action]) -> None:
        """A peer has lied: nothing that came from it is believed."""
        if source in self._board.peers:
            self.quarantine(source, now_s, actions, lied=True)
        for state in list(self._board.blobs.values()):
            chunks = [chunk for chunk, by in state.came_from.items() if by == source]
            if not chunks or (state.finished and state.complete):
                continue  # what was verified meanwhile is right
            for chunk in sorted(chunks):
                state.audits.discard(chunk)
                state.lose(chunk)
            actions.append(Forget(state.blob, tuple(sorted(chunks))))
            self._board.enqueue(state)
