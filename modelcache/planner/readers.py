"""Chunks that somebody on this node reads before they are here, and such as are about to be read.

What a reader waits for goes before all but what peers wait for, whichever source should give it,
and may take a few connections more than a source is given otherwise: a reader that waited for a
free one would wait for two chunks instead of one. What it is about to want takes its turn among
the rest, but before all that nobody reads. Nothing here changes how often a chunk is fetched, but
for one that stands behind others in a long request: that one is asked for once more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from modelcache.domain.manifests import BlobId
from modelcache.planner.board import Board
from modelcache.planner.events import (
    Action,
    AttemptId,
    ChunkWanted,
    Fetch,
    Hasten,
    SourceId,
    Waiter,
)
from modelcache.planner.lots import ORIGIN
from modelcache.planner.state import BlobState

if TYPE_CHECKING:
    from modelcache.planner.dispatch import Dispatch

AWAITED_MAX: Final = 1024  # looked through at every event; more readers than that are served later
SOON_MAX: Final = 1024  # 16 GiB of chunks: windows ahead of a hundred readers
EXTRA_CONNECTIONS: Final = 4  # beyond a source's limit: readers beyond these wait for the first

Wanted = dict[tuple[BlobId, int], bool]  # in the order of asking; whether it was asked for twice


class Readers:
    """See the module. Not thread-safe."""

    def __init__(self, board: Board, dispatch: Dispatch) -> None:
        """dispatch: which says who may be asked."""
        self._board = board
        self._dispatch = dispatch
        self._awaited: Wanted = {}
        self._soon: Wanted = {}

    def wanted(self, event: ChunkWanted, actions: list[Action]) -> None:
        """Somebody reads a chunk, or will soon. Idempotent."""
        state = self._board.blobs.get(event.blob)
        known = state is not None and 0 <= event.chunk < state.grid.count
        if state is None or not known or state.stored[event.chunk]:
            return
        key = (event.blob, event.chunk)
        if event.waiter is Waiter.SOON:
            if len(self._soon) < SOON_MAX and key not in self._awaited:
                self._soon.setdefault(key, False)
        elif len(self._awaited) < AWAITED_MAX:
            self._soon.pop(key, None)
            if key not in self._awaited:
                self._awaited[key] = False
                actions += [Hasten(attempt) for attempt in self._reading(state, event.chunk)]

    def next_awaited(self, now_s: float) -> Fetch | None:
        """The next attempt for a reader that waits."""
        board = self._board
        if now_s < board.gathering_until_s and board.origins_in_flight:
            return None  # it may be another's; see Dispatch.next
        for (blob, chunk), again in list(self._awaited.items()):
            state = self._open(self._awaited, blob, chunk)
            if state is None:
                continue
            if state.pending.waits(chunk):
                fetch = self._launch(state, chunk, now_s, extra=EXTRA_CONNECTIONS)
            else:
                fetch = None if again else self._overtake(state, chunk, now_s)
            if fetch is not None:
                return fetch
        return None

    def next_soon(self, now_s: float) -> Fetch | None:
        """The next attempt for what is about to be read."""
        for blob, chunk in list(self._soon):
            state = self._open(self._soon, blob, chunk)
            if state is None:
                continue
            if not state.pending.waits(chunk):
                if chunk in state.flying:
                    del self._soon[blob, chunk]
                continue
            fetch = self._launch(state, chunk, now_s, extra=0)
            if fetch is not None:
                self._soon.pop((blob, chunk), None)
                return fetch
        return None

    def _open(self, wanted: Wanted, blob: BlobId, chunk: int) -> BlobState | None:
        """The blob, while the chunk is still missing; else it is wanted no more."""
        state = self._board.blobs.get(blob)
        if state is None or state.stored[chunk]:
            del wanted[blob, chunk]
            return None
        return state

    def _launch(self, state: BlobState, chunk: int, now_s: float, *, extra: int) -> Fetch | None:
        """Ask for a chunk that waits, of whom its lot names or else of an origin."""
        board = self._board
        if not state.ranges and len(state.pending) < state.grid.count:
            return None  # one stream, that begins anew; it comes in its order
        source = self._source(state, chunk, now_s, extra=extra)
        if source is None:
            return None
        first, end = (chunk, chunk + 1) if state.ranges else (0, state.grid.count)
        for each in range(first, end):
            state.pending.discard(each)
        board.settle_all(state)
        chunks = [(state.blob, each) for each in range(first, end)]
        serve = self._dispatch.serves(state, source)
        fetch = board.launch(source, chunks, now_s, lanes=int(state.small), serve=serve)
        return replace(fetch, urgent=extra > 0)

    def _overtake(self, state: BlobState, chunk: int, now_s: float) -> Fetch | None:
        """Ask once more for a chunk that stands behind others of its request."""
        board = self._board
        if chunk not in state.flying or state.small or not state.ranges:
            return None
        if self._reading(state, chunk):
            return None
        source = self._origin(state, now_s, EXTRA_CONNECTIONS)
        if source is None:
            return None
        self._awaited[state.blob, chunk] = True
        fetch = board.launch(source, [(state.blob, chunk)], now_s, hedge=True)
        return replace(fetch, urgent=True)

    def _reading(self, state: BlobState, chunk: int) -> list[AttemptId]:
        """Attempts that read this chunk now, and none before it."""
        flying = [self._board.attempts[each] for each in state.flying.get(chunk, ())]
        key = (state.blob, chunk)
        return [each.attempt for each in flying if each.remaining and each.remaining[0] == key]

    def _source(self, state: BlobState, chunk: int, now_s: float, *, extra: int) -> SourceId | None:
        lot = state.pending.lot_of(chunk)
        if lot == ORIGIN and state.shares is not None:
            lot = state.shares.seed(chunk)
        if lot != ORIGIN and self._has_room(lot, now_s, extra):
            return lot
        return self._origin(state, now_s, extra)

    def _origin(self, state: BlobState, now_s: float, extra: int) -> SourceId | None:
        origin = self._dispatch.origin_of(state, now_s)
        if origin is not None:
            return origin
        usable = (source for source in state.sources if source not in state.refused)
        return next((each for each in usable if self._has_room(each, now_s, extra)), None)

    def _has_room(self, source: SourceId, now_s: float, extra: int) -> bool:
        """Whether one more may be asked of it, by its limit or by that of readers."""
        board = self._board
        if self._dispatch.free(source, now_s) > 0:
            return True
        known = board.source(source)
        if source not in board.peers and (
            board.origin_connections is not None or now_s < board.origins_rest_until_s
        ):
            return False  # a limit of all nodes together holds for readers too
        return now_s >= known.blocked_until_s and known.in_flight < known.concurrency.limit + extra
