"""Whether origins alone would bring what peers owe much sooner than peers do.

What an origin can do is not known while it is read on a few connections, as a swarm does. So where
peers will take long, and each of those connections is quick, it is tried: for a while an origin is
read on all connections there may be, for what peers owe. If that does not bring so much more that
it is worth reading the origin once for every node, it is left alone again, and tried later, less
and less often. It owns that trial, and decides nothing else.
"""

from __future__ import annotations

from typing import Final

from modelcache.planner.board import Board
from modelcache.planner.lots import ORIGIN

PATIENCE: Final = 3  # checks in a row: rates are known by then
TRIAL_S: Final = 8.0  # a rate that is averaged over 5 s has become that of the trial
HELD_UP_S: Final = 24.0  # and so much longer where peers' requests have not ended yet
TRIAL_WAIT_S: Final = 20.0  # before the next one
TRIAL_WAIT_GROWS: Final = 4  # times, with each: what was found out once seldom changes
MUCH_QUICKER: Final = 6.0  # times what peers bring
UNKNOWN_WAITS: Final = 3  # of `steal_after_s`: then what has not come says enough


class Weighing:
    """See the module."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._limits = board.limits
        self._in_row = 0
        self._peers_rate = 1.0  # bytes a second that peers gave, before origins were read for it
        self._trial_until_s = 0.0
        self._next_trial_s = 0.0
        self._wait_s = TRIAL_WAIT_S

    def origins(self, now_s: float, owed: int) -> bool:
        """Whether origins should be read for what peers owe. Ask at every check.

        owed: bytes that wait for peers.
        """
        board, limits = self._board, self._limits
        if not board.stealing:
            self._peers_rate = self._rate_of_peers(now_s)
        much = self._may_bring(now_s) > MUCH_QUICKER * self._peers_rate
        least_s = limits.check_every_s if board.stealing else limits.steal_s
        ripe = self._settled(now_s, much=much) and (much or self._room())
        quicker = (
            (board.stealing or ripe)
            and owed > least_s * self._peers_rate
            and self._promise(now_s) > limits.steal_factor * self._peers_rate
        )
        self._in_row = self._in_row + 1 if quicker else 0
        steal = self._in_row >= PATIENCE
        if steal and not board.stealing:
            self._begin(now_s)
        elif board.stealing and not steal:
            self._next_trial_s = now_s + self._wait_s
            self._wait_s *= TRIAL_WAIT_GROWS
        return steal

    def _room(self) -> bool:
        """Whether origins have room for more: not before the end of our own share."""
        board, limits = self._board, self._limits
        left = sum(board.blobs[blob].pending.count(ORIGIN) for _, _, blob in board.large)
        return left < limits.seed_left_share * limits.seed_connections_min

    def _settled(self, now_s: float, *, much: bool) -> bool:
        """Whether enough has come from peers to say what they bring: as much as is on its way.

        much: origins may bring many times as much. Then half of the time says enough.
        """
        board = self._board
        so_far_s = now_s - board.begun_s
        after_s = self._limits.steal_after_s
        if so_far_s <= (after_s / 2 if much else after_s):
            return False
        chunk_bytes = max((state.grid.chunk_bytes for state in board.blobs.values()), default=0)
        given = sum(peer.received_bytes for peer in board.peers.values())
        known = given >= board.peers_in_flight * chunk_bytes
        return known or so_far_s > UNKNOWN_WAITS * self._limits.steal_after_s

    def _begin(self, now_s: float) -> None:
        self._trial_until_s = now_s + TRIAL_S
        for source in self._board.sources.values():
            source.concurrency.leap()

    def _rate_of_peers(self, now_s: float) -> float:
        board = self._board
        peers = board.peers.values()
        rate = sum(peer.rate_at(now_s, self._limits.rate_memory_s) for peer in peers)
        # Where chunks take longer than a rate is remembered, none may have come meanwhile.
        given = sum(peer.received_bytes for peer in peers)
        return max(rate, given / max(now_s - board.begun_s, 1.0), 1.0)

    def _promise(self, now_s: float) -> float:
        """Bytes a second that origins bring, or may bring if that is not known."""
        board = self._board
        if not board.stealing:
            best = max((source.best_rate for source in board.sources.values()), default=0.0)
            return max(best, self._may_bring(now_s))
        if now_s < self._trial_until_s + (HELD_UP_S if self._held_up() else 0.0):
            return float("inf")
        memory_s = self._limits.rate_memory_s
        return sum(source.rate_at(now_s, memory_s) for source in board.sources.values())

    def _held_up(self) -> bool:
        """Whether requests at slow peers leave origins not half of their connections."""
        board = self._board
        most = max((source.concurrency.limit for source in board.sources.values()), default=0)
        return 2 * board.origins_in_flight < most and board.peers_in_flight > 0

    def _may_bring(self, now_s: float) -> float:
        """If every connection there may be were as quick as those there are.

        0 where those are slow: they share a link, with others that are not done with their part;
        and 0 where that was tried, until it is time to try again.
        """
        if now_s < self._next_trial_s:
            return 0.0
        quick = [
            source.rate
            for source in self._board.sources.values()
            if source.rate >= self._limits.seed_connection_rate
        ]
        return max(quick, default=0.0) * self._limits.connections_max
