"""Peers: who has joined, and who is left alone for a while.

It turns what peers say and do into shares of the work (`Shares`), which is all that dispatch looks
at. It owns quarantine, and what is taken over from stragglers; who has lied is found by `audits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelcache.domain.holdings import HoldingState
from modelcache.domain.manifests import BlobId
from modelcache.planner.board import Board, Rank
from modelcache.planner.events import (
    Action,
    Announce,
    ChunkWanted,
    PeerTold,
    Quarantine,
    SourceId,
    peer_of,
)
from modelcache.planner.lots import ORIGIN
from modelcache.planner.progress import Progress, unread
from modelcache.planner.shares import Shares
from modelcache.planner.state import BlobState, PeerState
from modelcache.planner.weighing import Weighing

STEALS_MAX: Final = 8  # chunks taken from a peer's share at one check
TAKE_OVER_LOOK: Final = 256  # chunks looked at for one that would be ours


class Swarm:
    """See the module."""

    def __init__(self, board: Board, progress: Progress) -> None:
        self._board = board
        self._progress = progress
        self._limits = board.limits
        self._check_s = 0.0
        self._weighing = Weighing(board)

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
        peer = self._peer(event.source, now_s)
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
        self._progress.heard(state, event.source, now_s)

    def _peer(self, source: SourceId, now_s: float) -> PeerState:
        peer = self._board.peers.get(source)
        if peer is None:
            peer = self._board.peers[source] = PeerState(self._limits, now_s)
        return peer

    def left(self, source: SourceId) -> None:
        """A peer is not to be asked for anything more."""
        self._board.leaving.pop(source, None)
        self._progress.left(source)
        for state in self._board.blobs.values():
            self._left_blob(state, source)

    def denied(self, source: SourceId, blob: BlobId) -> None:
        """A peer does not have a blob, whatever it said."""
        state = self._board.blobs.get(blob)
        if state is not None:
            self._left_blob(state, source)

    def wanted(self, event: ChunkWanted, now_s: float, actions: list[Action]) -> None:
        """Somebody waits for a chunk: it is ours now, and goes first."""
        state = self._board.blobs.get(event.blob)
        if state is None or state.small or not 0 <= event.chunk < state.grid.count:
            return
        if state.stored[event.chunk]:
            self._vouch(state, event.chunk)
        fresh = state.shares is not None and state.shares.expected(event.chunk)
        if not state.pending.waits(event.chunk):
            if fresh:
                self._not_from_peers(state, event.chunk, now_s, actions)
            return
        if fresh:
            state.pending.move((event.chunk,))
            self._board.settle_all(state)
        self._board.urgent.append((event.blob, event.chunk))

    def _not_from_peers(
        self, state: BlobState, chunk: int, now_s: float, actions: list[Action]
    ) -> None:
        """Wait no longer for what could not be passed on, if the origin would have given it by now.

        Not before: nodes that have just heard of each other often ask for what comes in a moment.
        """
        board = self._board
        assert state.shares is not None, "peers have shares"  # noqa: S101
        patience_s = self._limits.steal_factor * self._usual_s()
        for attempt_id in state.flying.get(chunk, ()):
            attempt = board.attempts[attempt_id]
            late = now_s - attempt.since_s > patience_s
            if late and attempt.source in board.peers and not state.shares.vouches(attempt.source):
                board.cancel(attempt, actions)

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

    def lied(self, source: SourceId, now_s: float, actions: list[Action]) -> None:
        """A peer has given wrong bytes: it has a long rest, however often that is found."""
        peer = self._board.peers.get(source)
        resting = (
            peer is not None and peer.quarantined_until_s > now_s + self._limits.quarantine_max_s
        )
        if peer is not None and not resting:
            self.quarantine(source, now_s, actions, lied=True)

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
        owed = sum(self._pending_bytes(*share) for share in board.shares.items())
        board.stealing = self._weighing.origins(now_s, owed)
        if board.stealing:
            moved = self._take_last(now_s)
        elif board.large:
            return False
        else:
            longest_s, longest = self._longest(now_s)
            moved = self._is_straggler(longest_s, now_s) and (
                self._demote(longest, now_s, actions) or self._take_over(longest)
            )
            if not moved and (surplus := self._progress.surplus(now_s)):
                for state, chunk in surplus:
                    self._make_mine(state, chunk)
                moved = True
                self._check_s = now_s + self._limits.take_over_every_s
        if moved:
            actions.append(Announce())
        return moved

    def _is_straggler(self, longest_s: float, now_s: float) -> bool:
        """Whether a peer will be so late that its share is worth reading once more."""
        limits, board = self._limits, self._board
        so_far_s = now_s - board.begun_s
        patience_s = limits.steal_factor * self._usual_s()
        owed = sum(self._owed(source) for source in board.shares)
        all_s = owed * so_far_s / max(self._given(), 1)  # that all of them together will take
        return longest_s > max(
            patience_s, limits.straggler_share * so_far_s, limits.straggler_factor * all_s
        )

    def late(self, source: SourceId, now_s: float, actions: list[Action]) -> None:
        """An attempt at a peer has been hedged: two in a row, and nothing came in between."""
        peer = self._board.peers[source]
        peer.late += 1
        if peer.late > 1:
            self.quarantine(source, now_s, actions)

    def _demote(self, source: SourceId, now_s: float, actions: list[Action]) -> bool:
        """Ask nothing more of a peer that gives a fraction of what the others do.

        Also not what it has: it sends that to all of the cell on a link that is too slow for one.
        """
        board = self._board
        node = peer_of(source)
        if now_s - board.begun_s <= self._limits.steal_after_s:
            return False
        paces = sorted(
            self._pace(each, now_s) for each, peer in board.peers.items() if peer.received_bytes
        )
        usual = paces[len(paces) // 2] if paces else 0.0
        if node is None or self._at_least(source, now_s) * self._limits.demote_factor > usual:
            return False
        moved = False
        for state in board.blobs.values():
            if state.shares is None or node in state.shares.complete:
                continue
            state.pending.move(state.shares.demote(node))
            board.settle_all(state)
            moved = True
        if moved:
            for attempt in board.attempts.values():
                if attempt.source == source:
                    board.cancel(attempt, actions)
        return moved

    def _take_over(self, source: SourceId) -> bool:
        """Read what a peer has not read yet and would be ours if it were not there.

        No two nodes take over the same chunk that way. The owner hears of it at once, and asks here
        for the chunk when it comes to it.
        """
        for state, chunk in unread(self._board, source, TAKE_OVER_LOOK):
            if state.shares is not None and state.shares.second(chunk) == self._board.me:
                self._make_mine(state, chunk)
                return True
        return False

    def _take_last(self, now_s: float) -> bool:
        """Read what peers may have read: origins are so much faster than peers together.

        As much as all connections bring until the check after next, of the longest shares.
        """
        board = self._board
        moved = False
        sources = board.sources.values()
        rate = max((source.rate * source.concurrency.limit for source in sources), default=0.0)
        budget = rate * 2 * self._limits.check_every_s - self._pending_bytes(ORIGIN, board.large)
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
        return self._owed(source) / self._at_least(source, now_s)

    def _at_least(self, source: SourceId, now_s: float) -> float:
        """The pace of a peer that owes chunks, as if one more of them had just come.

        So that one who has given nothing yet is no straggler.
        """
        board = self._board
        chunk_bytes = board.blobs[board.shares[source][0][2]].grid.chunk_bytes
        return self._pace(source, now_s, least=chunk_bytes)

    def _pace(self, source: SourceId, now_s: float, least: int = 0) -> float:
        """Bytes a second that a peer has given since it is known; as if it were `least` of them."""
        peer = self._board.peers[source]
        known_s = now_s - max(self._board.begun_s, peer.since_s)
        return max(peer.received_bytes, least) / max(known_s, self._limits.check_every_s)

    def _owed(self, source: SourceId) -> int:
        """Bytes that wait for a peer, or are on their way from it."""
        board = self._board
        queue = board.shares[source]
        flying = board.peers[source].in_flight * board.blobs[queue[0][2]].grid.chunk_bytes
        return flying + self._pending_bytes(source, queue)

    def _pending_bytes(self, lot: SourceId, queue: Sequence[Rank]) -> int:
        """Bytes that wait in a lot of the blobs of a queue."""
        blobs = self._board.blobs
        return sum(
            blobs[blob].pending.count(lot) * blobs[blob].grid.chunk_bytes for _, _, blob in queue
        )

    def _given(self) -> int:
        """Bytes that came from peers so far."""
        return sum(peer.received_bytes for peer in self._board.peers.values())

    def _usual_s(self) -> float:
        """How long a chunk usually takes from origins."""
        sources = self._board.sources.values()
        samples = sorted(seconds for source in sources for seconds in source.durations[0])
        return samples[len(samples) // 2] if samples else self._limits.hedge_unknown_s
