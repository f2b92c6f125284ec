"""Peers: who has joined, who is left alone for a while, and who has lied.

It turns what peers say and do into shares of the work (`Shares`), which is all that dispatch looks
at. It owns quarantine, what is taken over from stragglers, and audits.

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
from modelcache.planner.events import (
    Action,
    Announce,
    ChunkAudited,
    ChunkWanted,
    Forget,
    PeerTold,
    Quarantine,
    SourceId,
    peer_of,
)
from modelcache.planner.shares import Shares
from modelcache.planner.state import BlobState, PeerState

AUDITS_FIRST: Final = 1  # chunks of each peer in the first round: a liar rarely lies once
STEAL_PATIENCE: Final = 3  # checks in a row: rates are known by then
STEALS_MAX: Final = 8  # chunks taken from a peer's share at one check
TAKE_OVER_LOOK: Final = 256  # chunks looked at for one that would be ours


class Swarm:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._limits = board.limits
        self._check_s = 0.0
        self._quicker = 0  # checks in a row at which origins alone would have been

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
        peer = self._peer(event.source)
        if now_s < peer.quarantined_until_s:
            return
        if state.small:
            if event.holding.state is HoldingState.COMPLETE:
                state.holders[event.source] = None
            else:
                state.holders.pop(event.source, None)
            return
        if event.holding.state is HoldingState.LEAVING:
            self._board.leaving[event.source] = None
        else:
            self._board.leaving.pop(event.source, None)
        if state.shares is None:
            if event.holding.state is HoldingState.NONE:
                return
            state.shares = Shares(state.blob, state.grid, self._board.me)
            state.pending.share(state.grid.count, state.shares.source)
        state.pending.move(state.shares.told(node, event.holding))
        self._board.settle_all(state)

    def _peer(self, source: SourceId) -> PeerState:
        peer = self._board.peers.get(source)
        if peer is None:
            peer = self._board.peers[source] = PeerState(self._limits)
        return peer

    def left(self, source: SourceId) -> None:
        """A peer is not to be asked for anything more."""
        self._board.leaving.pop(source, None)
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
        if chunk in state.came_from and chunk not in state.audits and not state.finished:
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
        """Take work over from peers whose share will come late; True if chunks were moved.

        Call it when it is due and nothing more can be asked of anybody. It does something only when
        our own share is read: then it is peers that hold us up, and origins have room for more.
        """
        self._check_s = now_s + self._limits.check_every_s
        board = self._board
        if not board.sources:
            return False
        settled = now_s - board.begun_s > self._limits.steal_after_s
        self._quicker = self._quicker + 1 if settled and self._is_quicker(now_s) else 0
        board.stealing = self._quicker >= STEAL_PATIENCE
        if board.large:
            return False
        if board.stealing:
            moved = self._take_last(now_s)
        else:
            longest_s, longest = self._longest(now_s)
            moved = self._is_straggler(longest_s, now_s) and self._take_over(longest)
        if moved:
            actions.append(Announce())
        return moved

    def _is_straggler(self, longest_s: float, now_s: float) -> bool:
        """Whether a peer will be so late that its share is worth reading once more."""
        limits, board = self._limits, self._board
        so_far_s = now_s - board.begun_s
        patience_s = limits.steal_factor * self._usual_s()
        owed = sum(self._owed(source) for source in board.shares)
        given = sum(peer.received_bytes for peer in board.peers.values())
        all_s = owed * so_far_s / max(given, 1)  # that all of them together will take
        return longest_s > max(
            patience_s, limits.straggler_share * so_far_s, limits.straggler_factor * all_s
        )

    def late(self, source: SourceId, now_s: float, actions: list[Action]) -> None:
        """An attempt at a peer has been hedged: two in a row, and nothing came in between."""
        peer = self._board.peers[source]
        peer.late += 1
        if peer.late > 1:
            self.quarantine(source, now_s, actions)

    def _take_over(self, source: SourceId) -> bool:
        """Read what a peer has not read yet and would be ours if it were not there.

        No two nodes take over the same chunk that way. The owner hears of it at once, and asks here
        for the chunk when it comes to it.
        """
        board = self._board
        node = peer_of(source)
        looked = 0
        for _, _, blob in reversed(board.shares[source]):
            state = board.blobs[blob]
            shares = state.shares
            if shares is None or node is None or shares.complete:
                continue
            for chunk in state.pending.last_ones(source, TAKE_OVER_LOOK):
                looked += 1
                if not shares.node_has(node, chunk) and shares.second(chunk) == board.me:
                    self._make_mine(state, chunk)
                    return True
            if looked >= TAKE_OVER_LOOK:
                break
        return False

    def _take_last(self, now_s: float) -> bool:
        """Read what peers may have read: origins are so much faster than peers together.

        As much as origins bring until the next check, of the longest shares.
        """
        board = self._board
        moved = False
        budget = self._origins_rate() * self._limits.check_every_s
        while budget > 0 and board.shares:
            _, longest = self._longest(now_s)
            state = board.blobs[board.shares[longest][-1][2]]
            if state.shares is None:
                break
            for chunk in state.pending.last_ones(longest, STEALS_MAX):
                state.shares.steal(chunk)
                self._make_mine(state, chunk)
                budget -= state.grid.chunk_bytes
                moved = True
        return moved

    def _origins_rate(self) -> float:
        """The most that origins have brought here: with all that others read beside it."""
        found = (source.best_rate for source in self._board.sources.values())
        return max(found, default=0.0)

    def _make_mine(self, state: BlobState, chunk: int) -> None:
        assert state.shares is not None, "peers have shares"  # noqa: S101
        state.shares.expected(chunk)
        state.pending.move((chunk,))
        self._board.settle_all(state)

    def _longest(self, now_s: float) -> tuple[float, SourceId]:
        """The peer whose share will take the longest, and how long."""
        return max((self._backlog_s(source, now_s), source) for source in self._board.shares)

    def _backlog_s(self, source: SourceId, now_s: float) -> float:
        """How long what a peer still owes will take at its rate so far.

        Not at that of the last seconds: among a dozen streams one is often left out for as long.
        """
        board = self._board
        peer = board.peers[source]
        queue = board.shares[source]
        # As if one chunk had just come, so that one who has given nothing yet is no straggler.
        given = max(peer.received_bytes, board.blobs[queue[0][2]].grid.chunk_bytes)
        return self._owed(source) * (now_s - board.begun_s) / given

    def _owed(self, source: SourceId) -> int:
        """Bytes that wait for a peer, or are on their way from it."""
        board = self._board
        queue = board.shares[source]
        flying = board.peers[source].in_flight * board.blobs[queue[0][2]].grid.chunk_bytes
        return flying + self._pending_bytes(source)

    def _pending_bytes(self, source: SourceId) -> int:
        """Bytes that wait for a peer."""
        board = self._board
        return sum(
            board.blobs[blob].pending.count(source) * board.blobs[blob].grid.chunk_bytes
            for _, _, blob in board.shares[source]
        )

    def _usual_s(self) -> float:
        """How long a chunk usually takes from origins."""
        sources = self._board.sources.values()
        samples = sorted(seconds for source in sources for seconds in source.durations[0])
        return samples[len(samples) // 2] if samples else self._limits.hedge_unknown_s

    def _is_quicker(self, now_s: float) -> bool:
        """Whether origins alone would bring all that peers owe in much less time than they do."""
        board = self._board
        owed = sum(self._pending_bytes(source) for source in board.shares)
        rate = sum(peer.rate_at(now_s, self._limits.rate_memory_s) for peer in board.peers.values())
        peers_s = owed / max(rate, 1.0)
        limits = self._limits
        origins_s = owed / max(self._origins_rate(), 1.0)
        quicker = peers_s > limits.steal_s and peers_s > limits.steal_factor * origins_s
        # While our own share is being read, origins have no room for more.
        return quicker and (board.stealing or not board.large)

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

    def audits_over(self, state: BlobState, actions: list[Action]) -> bool:
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
            if state.finished and state.complete:
                continue  # being verified: that tells
            # Those that are being audited are put right by that.
            chunks = [
                chunk
                for chunk, by in state.came_from.items()
                if by == source and chunk not in state.audits
            ]
            if not chunks:
                continue
            for chunk in sorted(chunks):
                state.lose(chunk)
            actions.append(Forget(state.blob, tuple(sorted(chunks))))
            self._board.enqueue(state)
