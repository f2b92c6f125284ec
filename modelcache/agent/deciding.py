"""The node's own thread: it decides who has its turn, and has the arbiter's decisions obeyed.

All that is decided is decided here, one thing after the other: an order to pause, given before an
attempt has ended, never reaches the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from modelcache.agent.attempting import Attempting
from modelcache.agent.board import Board
from modelcache.agent.events import EventKind
from modelcache.agent.progressing import Stop, Wanted
from modelcache.agent.scheduling import next_due_s, turns
from modelcache.errors import StoreError
from modelcache.planner.arbiter import (
    Arbiter,
    ArbiterAction,
    Limit,
    Pause,
    PriorityChanged,
    Resume,
)

TICK_S: Final = 5.0  # the longest that it sleeps; what is due wakes it earlier

Chore = Callable[[], None]
"""Something to look after now and then; it may raise StoreError."""


class Deciding:
    """See the module."""

    def __init__(
        self,
        board: Board,
        attempting: Attempting,
        arbiter: Arbiter,
        *,
        pulls_max: int,
        chores: Sequence[Chore],
    ) -> None:
        """chores: done before each round, without the board's lock."""
        self._board = board
        self._attempting = attempting
        self._arbiter = arbiter
        self._pulls_max = pulls_max
        self._chores = chores
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """False when the thread has died, as only a bug can make it."""
        return self._thread is None or self._thread.is_alive() or self._board.closing

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="modelcache-node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, and wait until it has. Idempotent."""
        with self._board.changed:
            self._board.closing = True
            self._board.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        board = self._board
        while True:
            for chore in self._chores:
                self._guarded(chore)
            with board.changed:
                if board.closing:
                    return
                events = list(board.arbiter_events)
                board.arbiter_events.clear()
            for event in events:
                if isinstance(event, PriorityChanged):
                    self._prioritise(event)
                for action in self._arbiter.handle(event):
                    self._apply(action)
            with board.changed:
                self._take_turns()
                if not board.arbiter_events and not board.closing:
                    board.changed.wait(self._sleep_s())

    def _guarded(self, chore: Chore) -> None:
        try:
            chore()
        except StoreError as error:  # the disk's trouble passes, and the node goes on
            self._board.events.add(EventKind.STORE_TROUBLE, message=error.message)

    def _sleep_s(self) -> float:
        due_s = next_due_s(self._board.wanted.values())
        if due_s is None or self._board.draining:
            return TICK_S
        left_s = due_s - monotonic()
        # What is due and waits for a place is woken by whoever leaves one.
        return min(TICK_S, left_s) if left_s > 0 else TICK_S

    def _take_turns(self) -> None:
        """Begin and stop attempts. The caller holds the board's lock."""
        board = self._board
        if board.draining:
            return
        now = turns(board.wanted.values(), pulls_max=self._pulls_max, now_s=monotonic())
        for wanted in now.stop:
            if wanted.attempt is not None:
                wanted.attempt.stop(Stop.PREEMPTED)
        for wanted in now.begin:
            self._attempting.begin(wanted)

    def _prioritise(self, event: PriorityChanged) -> None:
        wanted = self._known(event.transfer)
        if wanted is not None:
            wanted.control.set_priority(event.priority)

    def _apply(self, action: ArbiterAction) -> None:
        wanted = self._known(action.transfer)
        if wanted is None:
            return
        match action:
            case Pause():
                wanted.control.set_paused(paused=True)
                self._board.events.add(EventKind.PAUSED, wanted.wanted_id)
            case Resume():
                wanted.control.set_paused(paused=False)
                self._board.events.add(EventKind.RESUMED, wanted.wanted_id)
            case Limit(_, bytes_s):
                wanted.control.set_limit(bytes_s)
        with self._board.changed:
            self._board.changed.notify_all()

    def _known(self, transfer: str) -> Wanted | None:
        with self._board.changed:
            return self._board.wanted.get(transfer)
