"""Events as they happen, over server-sent events; and waiting for a model without a thread.

A stream reads from the node's ring, so a slow reader costs nothing: what it misses is counted as
lost. Its ids carry the agent's epoch: an id of an earlier life begins the stream anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from modelcache.agent.events import Event, EventKind, EventLog
from modelcache.domain.wanted import WantedStatus

HEARTBEAT_S: Final = 15.0  # proxies close what is silent for half a minute
BATCH_MAX: Final = 256  # events sent before looking whether the agent ends
WAIT_MAX_S: Final = 300.0
LOST: Final = "lost"
_ID_MAX: Final = 64


@dataclass(slots=True)
class Closing:
    """Whether the face is about to end; everything that waits here wakes when it does."""

    closing: bool = False
    _wakers: set[asyncio.Event] = field(default_factory=set)

    def close(self) -> None:
        """End all streams. From the event loop's thread."""
        self.closing = True
        for waker in self._wakers:
            waker.set()

    @contextmanager
    def waker(self) -> Iterator[asyncio.Event]:
        """An event that is set when the face ends."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            yield waker
        finally:
            self._wakers.discard(waker)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a stream tells; empty for all."""

    kinds: frozenset[EventKind] = frozenset()
    model: str = ""

    def takes(self, event: Event) -> bool:
        """Whether one is told."""
        kind = not self.kinds or event.kind in self.kinds
        return kind and (not self.model or event.model == self.model)


def position(log: EventLog, last_id: str | None, *, history: bool) -> tuple[int, bool]:
    """The number after which a stream goes on, and whether something before it was lost.

    last_id: the last that the client has seen, as it was told.
    """
    if last_id is None:
        return (0 if history else log.newest), False
    epoch, _, number = last_id[:_ID_MAX].partition(".")
    if epoch != log.epoch or not number.isascii() or not number.isdigit():
        return 0, True  # of an earlier life of the agent: its events are gone
    return min(int(number), log.newest), False


async def stream(
    log: EventLog, closing: Closing, wanted: Filter, start: int, *, lost: bool
) -> AsyncIterator[str]:
    """Server-sent events after a number, as they come. Raises Throttled before the first."""
    loop = asyncio.get_running_loop()
    with closing.waker() as news, _watching(log, loop, news):
        if lost:
            yield _message(f"{log.epoch}.{start}", LOST, {"kind": LOST})
        while not closing.closing:
            news.clear()
            events, missed = log.after(start, BATCH_MAX)
            if missed and start:
                yield _message(f"{log.epoch}.{start}", LOST, {"kind": LOST})
            for event in events:
                if wanted.takes(event):
                    name = f"{log.epoch}.{event.number}"
                    yield _message(name, event.kind.value, event.to_json())
            if events:
                start = events[-1].number
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await news.wait()
            except TimeoutError:
                yield ": nothing new\n\n"


async def wait_settled(
    log: EventLog, closing: Closing, look: Callable[[], WantedStatus], timeout_s: float
) -> WantedStatus:
    """Look at a model until it is warm or has failed, or the time is over. Raises what `look` does.

    timeout_s: at most WAIT_MAX_S. Raises Throttled when too many wait.
    """
    until_s = monotonic() + min(timeout_s, WAIT_MAX_S)
    loop = asyncio.get_running_loop()
    with closing.waker() as news, _watching(log, loop, news):
        while True:
            news.clear()
            status = look()
            left_s = until_s - monotonic()
            if status.phase.settled or left_s <= 0 or closing.closing:
                return status
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await news.wait()


@contextmanager
def _watching(
    log: EventLog, loop: asyncio.AbstractEventLoop, news: asyncio.Event
) -> Iterator[None]:
    def told(_: Event) -> None:
        with suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(news.set)

    stop = log.watch(told)
    try:
        yield
    finally:
        stop()


def _message(name: str, kind: str, data: dict[str, object]) -> str:
    # JSON has no line breaks of its own, so one data line is all of it.
    return f"id: {name}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
