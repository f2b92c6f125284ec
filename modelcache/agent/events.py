"""What happens on a node, numbered, in a ring: for event streams, the log and whoever watches.

The ring is bounded, and a model's newest progress replaces its older one, so that what matters is
not washed out by percentages. Numbers only rise while the agent lives; `epoch` tells its lives
apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from modelcache.errors import Throttled

EVENTS_MAX: Final = 4096  # about 2 MB; hours of a busy node
BUSY_RETRY_S: Final = 5.0
WATCHERS_MAX: Final = 128  # each costs a call for every event


class EventKind(StrEnum):
    """The names of events: fixed, for they are filtered by in logs and streams."""

    QUEUED = "queued"
    RESOLVED = "resolved"
    STARTED = "started"
    PROGRESS = "progress"
    PAUSED = "paused"
    RESUMED = "resumed"
    WARM = "warm"
    RETRYING = "retrying"
    FAILED = "failed"
    PREEMPTED = "preempted"
    RELEASED = "released"
    EXPIRED = "expired"
    EVICTED = "evicted"
    REFUSED = "refused"
    DRAINING = "draining"
    DRAIN_ENDED = "drain_ended"
    STORE_TROUBLE = "store_trouble"
    PEER_QUARANTINED = "peer_quarantined"
    NAME_TAKEN = "name_taken"
    PUBLISHED = "published"
    UNPUBLISHED = "unpublished"
    STREAM_TROUBLE = "stream_trouble"  # what: timed_out, failed, doubted, and what is slower
    STREAM_TAKEN_OVER = "stream_taken_over"
    STREAM_REMOUNTED = "stream_remounted"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. at_s: seconds since the epoch. model: a wanted id, or empty.

    data: plain values that JSON can hold; no token and no unredacted ref among them.
    """

    number: int
    at_s: float
    kind: EventKind
    model: str
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "number": self.number,
            "at_s": round(self.at_s, 3),
            "kind": self.kind.value,
            "model": self.model,
            **self.data,
        }


class EventLog:
    """See the module. Thread-safe; watchers are called outside its lock, and must be quick."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds since the epoch."""
        self._clock = clock
        self._lock = threading.Lock()
        self._events: dict[int, Event] = {}  # in the order of their numbers
        self._progress: dict[str, int] = {}  # the number of each model's newest
        self._watchers: list[Callable[[Event], None]] = []
        self._dropped = 0  # the highest number that was pushed out
        self.newest = 0
        self.epoch = f"{int(clock() * 1000):x}"

    def add(self, kind: EventKind, model: str = "", **data: Any) -> Event:  # noqa: ANN401 - JSON
        """Note an event, and tell everybody who watches."""
        with self._lock:
            self.newest += 1
            event = Event(self.newest, self._clock(), kind, model, data)
            self._events[event.number] = event
            if kind is EventKind.PROGRESS:
                self._events.pop(self._progress.pop(model, 0), None)
                self._progress[model] = event.number
            while len(self._events) > EVENTS_MAX:
                self._drop_oldest()
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(event)
        return event

    def after(self, number: int, most: int = EVENTS_MAX) -> tuple[list[Event], bool]:
        """Events with higher numbers, oldest first; and whether some before them were lost."""
        with self._lock:
            newer = (event for event in self._events.values() if event.number > number)
            return list(islice(newer, most)), number < self._dropped

    def check_room(self) -> None:
        """Raises Throttled when nobody else can watch now."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise Throttled(
                f"{WATCHERS_MAX} watch this agent's events already; try again later",
                retry_after_s=BUSY_RETRY_S,
            )

    def watch(self, watcher: Callable[[Event], None]) -> Callable[[], None]:
        """Have every new event told, in the thread it happens in; returns what ends that.

        Raises Throttled when too many do.
        """
        with self._lock:
            self.check_room()
            self._watchers.append(watcher)

        def stop() -> None:
            with self._lock:
                self._watchers.remove(watcher)

        return stop

    def _drop_oldest(self) -> None:
        number = next(iter(self._events))
        event = self._events.pop(number)
        self._dropped = number
        if self._progress.get(event.model) == number:
            del self._progress[event.model]
