"""What is asked for next: small blobs beside large ones, origins and peers beside each other.

It chooses among what waits, and launches; what becomes of an attempt is the planner's.
"""

from __future__ import annotations

from modelcache.domain.manifests import BlobId
from modelcache.planner.board import Board
from modelcache.planner.events import Fetch, SourceId, peer_source
from modelcache.planner.lots import ORIGIN
from modelcache.planner.progress import Progress
from modelcache.planner.readers import Readers
from modelcache.planner.state import BlobState, SourceState


class Dispatch:
    """See the module."""

    def __init__(self, board: Board, progress: Progress) -> None:
        self._board = board
        self._progress = progress
        self._limits = board.limits
        self.readers = Readers(board, self)

    def next(self, now_s: float) -> Fetch | None:
        """The next attempt, or None: nothing waits, or nobody may be asked now.

        What others wait for goes first, also while everything else pauses. But not before it is
        known who else begins: asked by somebody who does not know either, we would read what is
        another's.
        """
        board = self._board
        if board.in_flight >= self._limits.connections_max or board.held:
            return None
        gathering = now_s < board.gathering_until_s
        fetch = self._next_urgent(now_s) if not gathering else None
        fetch = fetch or self.readers.next_awaited(now_s)
        if fetch is not None or board.paused:
            return fetch
        return (
            self.readers.next_soon(now_s)
            or self._next_audit(now_s)
            or self._next_small(now_s, share=True)
            or self._next_large(now_s)
            or self._next_share(now_s)
            or self._next_small(now_s, share=False)
        )

    # Who may be asked

    def free(self, source: SourceId, now_s: float) -> int:
        """Connections that may be added to a source."""
        board = self._board
        peer = board.peers.get(source)
        if peer is not None:
            return min(peer.free(now_s), self._peers_most() - board.peers_in_flight)
        if now_s < board.origins_rest_until_s:
            return 0
        free = board.sources[source].free(now_s)
        if board.origin_connections is not None:
            free = min(free, board.origin_connections - board.origins_in_flight)
        return max(0, free)

    def _peers_most(self) -> int:
        """Connections that peers may have together."""
        share = self._limits.peers_share
        if self._board.stealing:
            share = 1 - share
        return int(share * self._limits.connections_max)

    def origin_of(
        self, state: BlobState, now_s: float, avoid: SourceId | None = None
    ) -> SourceId | None:
        """The origin that should give a chunk of this blob now."""
        usable = [
            (source == avoid, self._board.sources[source].failures_in_row, order, source)
            for order, source in enumerate(state.sources)
            if source not in state.refused and self.free(source, now_s) > 0
        ]
        return min(usable)[-1] if usable else None

    def seed_of(self, state: BlobState, chunk: int, now_s: float) -> SourceId | None:
        """Who should give a chunk that nobody owes us: a node that has the blob, or the origin."""
        lot = state.shares.seed(chunk) if state.shares is not None else ORIGIN
        if lot == ORIGIN:
            return self.origin_of(state, now_s)
        return lot if self.free(lot, now_s) > 0 else None

    def serves(self, state: BlobState, source: SourceId) -> bool:
        """Whether what this source gives may be passed on before the blob is verified."""
        return state.vouched(source, self._board.peers)

    # What peers wait for, and audits

    def _next_urgent(self, now_s: float) -> Fetch | None:
        board = self._board
        for _ in range(len(board.urgent)):
            blob, chunk = board.urgent.popleft()
            state = board.blobs.get(blob)
            if state is None or not state.pending.waits(chunk):
                continue
            source = self.seed_of(state, chunk, now_s)
            if source is None or self._ahead_of_others(state, source, now_s):
                board.urgent.appendleft((blob, chunk))
                return None
            state.pending.discard(chunk)
            board.settle_all(state)
            serve = self.serves(state, source)
            return board.launch(source, [(blob, chunk)], now_s, serve=serve)
        return None

    def _ahead_of_others(self, state: BlobState, source: SourceId, now_s: float) -> bool:
        """Whether others should read what they are waited for first: see `progress`."""
        if state.shares is None or source in self._board.peers:
            return False
        return self._seed_full(source, state.shares.fetchers, now_s)

    def _next_audit(self, now_s: float) -> Fetch | None:
        board = self._board
        while board.audits:
            blob, chunk = board.audits[0]
            state = board.blobs.get(blob)
            if state is not None and chunk in state.audits:
                source = self._auditor(state, chunk, now_s)
                if source is None:
                    return None
                board.audits.popleft()
                serve = source not in board.peers
                return board.launch(source, [(blob, chunk)], now_s, audit=True, serve=serve)
            board.audits.popleft()
        return None

    def _auditor(self, state: BlobState, chunk: int, now_s: float) -> SourceId | None:
        """A node that has verified the blob, where that is enough to compare with; or the origin.

        None to wait for either.
        """
        comparing = state.doubted and state.comparing and chunk not in state.disputed
        if comparing and state.shares is not None:
            peers = self._board.peers
            others = [
                (peers[source].in_flight, source)
                for node in state.shares.complete
                if (source := peer_source(node)) != state.came_from.get(chunk)
                and now_s >= max(peers[source].blocked_until_s, peers[source].quarantined_until_s)
            ]
            if others:
                _, source = min(others)
                return source if self.free(source, now_s) > 0 else None
        return self.origin_of(state, now_s)

    # Small blobs

    def _next_small(self, now_s: float, *, share: bool) -> Fetch | None:
        """A batch of small blobs; with `share`, while they have under a quarter of the room."""
        board = self._board
        lanes = self._lanes(now_s, share=share) if board.small else 0
        if lanes <= 0:
            return None
        most = self._fair_batch(lanes)
        left = self._limits.batch_bytes_max
        chosen: list[tuple[BlobId, int]] = []
        source: SourceId | None = None
        passed: list[BlobId] = []
        while board.small and len(chosen) < most and left > 0:
            blob = board.small.popleft()
            state = board.blobs.get(blob)
            if state is None or not len(state.pending):
                continue
            candidate = self._small_source(state, now_s)
            if candidate is None or (source is not None and candidate != source):
                passed.append(blob)
                if len(passed) > self._limits.batch_blobs_max:
                    break
                continue
            source = candidate
            state.pending.take(ORIGIN, 1)
            left -= state.grid.size_bytes
            chosen.append((blob, 0))
        board.small.extendleft(reversed(passed))
        if source is None:
            return None
        lanes = max(1, min(lanes, len(chosen), self.free(source, now_s)))
        return board.launch(source, chosen, now_s, lanes=lanes)

    def _small_source(self, state: BlobState, now_s: float) -> SourceId | None:
        """A node that has the blob, even if it must be waited for; else the origin."""
        holders = [
            (self._board.peers[source].in_flight, source)
            for source in state.holders
            if self._board.peers[source].quarantined_until_s <= now_s
        ]
        if holders:
            _, source = min(holders)
            return source if self.free(source, now_s) > 0 else None
        return self.origin_of(state, now_s)

    def _lanes(self, now_s: float, *, share: bool) -> int:
        """Connections that the next batch may keep busy; none rather than a thread for one or two.

        An uneven limit would else leave a batch of one connection beside the others for ever.
        """
        board = self._board
        sources = self._small_sources()
        limit = sum(source.concurrency.limit for source in sources.values())
        free = max((self.free(source, now_s) for source in sources), default=0)
        room = limit
        if share and board.large:
            room = max(1, limit // 4)
            free = min(free, room - board.small_in_flight)
        wanted = min(self._limits.batch_weight, room)
        in_flight = board.in_flight
        lanes = min(wanted, free, self._limits.connections_max - in_flight)
        return lanes if 4 * lanes >= wanted or not in_flight else 0

    def _fair_batch(self, lanes: int) -> int:
        """Blobs for one batch: few enough that all connections get some of what is left."""
        limit = max(source.concurrency.limit for source in self._small_sources().values())
        fair = min(self._limits.batch_blobs_max, len(self._board.small) // (2 * limit))
        return max(1, fair * lanes // self._limits.batch_weight)

    def _small_sources(self) -> dict[SourceId, SourceState]:
        """Origins, and peers that have small blobs; the next blob's speaks for all."""
        board = self._board
        first = board.blobs.get(board.small[0]) if board.small else None
        found = dict(board.sources)
        if first is not None:
            found |= {source: board.peers[source] for source in first.holders}
        return found

    # Large blobs: from origins

    def _next_large(self, now_s: float) -> Fetch | None:
        board = self._board
        full: dict[tuple[SourceId, int], bool] = {}  # the same for all blobs of a swarm
        for _, _, blob in board.large:
            state = board.blobs[blob]
            source = self.origin_of(state, now_s)
            if source is None or self._window_full(state):
                continue
            swarm = (source, state.shares.fetchers if state.shares is not None else 1)
            if swarm not in full:
                full[swarm] = self._seed_full(*swarm, now_s)
            if full[swarm]:
                continue
            most = self._run_chunks(state, board.sources[source])
            first, end = state.pending.take(ORIGIN, most)
            board.settle(state, ORIGIN)
            return board.launch(source, [(blob, chunk) for chunk in range(first, end)], now_s)
        return None

    def _seed_full(self, source: SourceId, fetchers: int, now_s: float) -> bool:
        """Whether enough is on its way from the origin that a whole swarm shares.

        See `PlannerLimits.seed_connections_min` and `seed_left_share`.
        """
        board = self._board
        if now_s < board.gathering_until_s:
            return board.origins_in_flight > 0
        if board.stealing or fetchers < 2:  # noqa: PLR2004 - alone
            return False
        left = sum(board.blobs[blob].pending.count(ORIGIN) for _, _, blob in board.large)
        seed = board.sources[source]
        return board.origins_in_flight >= self._from_seed(seed, left, fetchers, now_s)

    def _from_seed(self, seed: SourceState, left: int, fetchers: int, now_s: float) -> int:
        """Chunks that may be on their way from a seed which `fetchers` nodes read.

        A node's part of what one alone would open; more or less where it is behind others or ahead
        of them. More are not opened because that pays, for among nodes that share a link it pays
        whoever takes from the others: measured on eight shaped links, the last node was ready half
        as late again. But where each connection brings so much that it cannot be a shared link that
        holds it back, there is room for as many as keep bringing it.
        """
        limits = self._limits
        rate = seed.rate_at(now_s, limits.rate_memory_s)
        roomy = min(seed.concurrency.limit, int(rate / limits.seed_connection_rate))
        least = max(limits.seed_connections_min, -(-seed.concurrency.limit // fetchers))
        share = roomy if roomy >= least else self._progress.connections(least, now_s)
        return min(share, max(1, left // limits.seed_left_share))

    def _window_full(self, state: BlobState) -> bool:
        """Chunks read in order are kept near the front, and spread over blobs instead.

        Not in a swarm: there they come in the order in which others have them.
        """
        if not state.in_order or state.shares is not None:
            return False
        flying = self._flying(state)
        if flying < 2:  # noqa: PLR2004 - one ahead of the front
            return False
        board = self._board
        waiting = (board.blobs[blob] for _, _, blob in board.large)
        peers = len({other.sequence for other in waiting if other.in_order})
        limit = max(board.sources[source].concurrency.limit for source in state.sources)
        return flying >= -(-limit // max(1, peers))

    def _flying(self, state: BlobState) -> int:
        """Chunks on their way of a blob, or of all of its sequence."""
        board = self._board
        members = board.sequences.get(state.sequence)
        if members is None:
            return len(state.flying)
        return sum(len(board.blobs[blob].flying) for blob in members if blob in board.blobs)

    def _run_chunks(self, state: BlobState, source: SourceState) -> int:
        if not state.ranges:
            return state.grid.count
        chunk_s = state.grid.chunk_bytes / source.rate if source.rate else 0.0
        if state.in_order or state.shares is not None or len(state.pending) == 1 or chunk_s <= 0:
            return 1
        wanted = source.first_byte_s / (self._limits.run_overhead_share * chunk_s)
        if wanted <= 1:
            return 1
        board = self._board
        left = sum(len(board.blobs[blob].pending) for _, _, blob in board.large)
        fair = left // (2 * source.concurrency.limit)
        return max(1, min(round(wanted), self._limits.run_chunks_max, fair))

    # Large blobs: from peers

    def _next_share(self, now_s: float) -> Fetch | None:
        """From the peer that is asked for least at the moment; of equals, the longest unasked.

        Before all others from one that is about to leave.
        """
        board = self._board
        if board.peers_in_flight >= self._peers_most():
            return None
        best: tuple[bool, int, int] | None = None
        chosen: SourceId | None = None
        gathering = now_s < board.gathering_until_s
        for source in board.shares:
            peer = board.peers[source]
            if gathering and not self.serves(board.blobs[board.shares[source][0][2]], source):
                continue
            if now_s < peer.blocked_until_s or peer.in_flight >= peer.concurrency.limit:
                continue
            key = (source not in board.leaving, peer.in_flight, peer.turn)
            if best is not None and key >= best:
                continue
            if not self._share_full(source, now_s):
                best, chosen = key, source
        if chosen is None:
            return None
        board.peers[chosen].turn = board.next_order()
        _, _, blob = board.shares[chosen][0]
        state = board.blobs[blob]
        first, _ = state.pending.take(chosen, 1)
        board.settle(state, chosen)
        serve = self.serves(state, chosen)
        return board.launch(chosen, [(blob, first)], now_s, serve=serve)

    def _share_full(self, source: SourceId, now_s: float) -> bool:
        """Whether enough is on its way from one peer."""
        board = self._board
        in_flight = board.peers[source].in_flight
        state = board.blobs[board.shares[source][0][2]]
        if not self.serves(state, source):
            return in_flight >= self._limits.peer_fetching_connections
        if state.shares is None or state.shares.direct:
            return False
        # The seed of a swarm: as with an origin.
        left = sum(board.blobs[blob].pending.count(source) for _, _, blob in board.shares[source])
        seed = board.peers[source]
        fetchers = state.shares.fetchers
        return in_flight >= self._from_seed(seed, left, fetchers, now_s)
