"""Who sends next, and how fast all together: turns at sending, and one limit on bandwidth.

While there are fewer sends than slots everybody sends at once. When all slots are taken, a slot
that falls free goes to the most urgent request; among those alike, to the peer that is sent the
least at the moment; then to the one whose last turn is longest ago. So a peer that opens many
connections gets as much as one that opens few, and no more than `per_peer` slots even while others
are free: a peer that has died must not block them all. Every `FAIR_EVERY`-th slot goes without
regard to urgency, so that nobody starves. A long send gives its turn away every few megabytes if
somebody waits.

A turn comes with a buffer for those who need one: so their memory is bounded by the slots.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from modelcache.domain.members import NodeId
from modelcache.errors import Throttled

FAIR_EVERY: Final = 4
BUFFER_BYTES: Final = 512 << 10  # what one call of SSL_write encrypts; twice as much gains nothing
BUSY_RETRY_S: Final = 1.0
BURST_S: Final = 0.25  # of the bandwidth limit


@dataclass(slots=True, eq=False)
class _Waiter:
    node: NodeId
    priority: int
    number: int
    since: int  # grants there had been when it came
    granted: threading.Event = field(default_factory=threading.Event)


class Turn:
    """One slot, held until `leave`. Not thread-safe."""

    def __init__(self, turns: Turns, node: NodeId, priority: int) -> None:
        self._turns = turns
        self._node = node
        self._priority = priority
        self._held = False

    def take(self, wait_s: float) -> None:
        """Wait for a slot. Raises Throttled when none falls free in time."""
        self._turns.take(self._node, self._priority, wait_s)
        self._held = True

    def pass_on(self, wait_s: float) -> None:
        """Let somebody else have a turn, if anybody waits, and wait for the next one.

        Raises Throttled when that takes longer than `wait_s`.
        """
        if self._turns.anybody_waits():
            self.leave()
            self.take(wait_s)

    def leave(self) -> None:
        """Give the slot back. Idempotent."""
        if self._held:
            self._held = False
            self._turns.leave(self._node)


class Turns:
    """Thread-safe."""

    def __init__(self, slots: int, per_peer: int) -> None:
        """slots: sends at once. per_peer: of them, most to one peer."""
        self._free = slots
        self._per_peer = per_peer
        self._lock = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._sending: dict[NodeId, int] = {}
        self._last: dict[NodeId, int] = {}  # the grant that was a peer's last, while it is here
        self._grants = 0
        self._numbers = 0
        self._buffers: list[memoryview] = []

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """BUFFER_BYTES of memory, for who holds a turn."""
        with self._lock:
            buffer = self._buffers.pop() if self._buffers else None
        if buffer is None:
            buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            yield buffer
        finally:
            with self._lock:
                self._buffers.append(buffer)

    def anybody_waits(self) -> bool:
        """Whether somebody wants a turn and has none."""
        return bool(self._waiting)

    def sending(self) -> dict[NodeId, int]:
        """Turns held, by peer."""
        with self._lock:
            return {node: count for node, count in self._sending.items() if count}

    def take(self, node: NodeId, priority: int, wait_s: float) -> None:
        """See `Turn.take`."""
        with self._lock:
            self._numbers += 1
            waiter = _Waiter(node, priority, self._numbers, self._grants)
            self._waiting.append(waiter)
            self._grant()
        if waiter.granted.wait(wait_s):
            return
        with self._lock:
            if not waiter.granted.is_set():
                self._waiting.remove(waiter)
                self._forget(node)
                raise Throttled("too many requests at once", retry_after_s=BUSY_RETRY_S)

    def leave(self, node: NodeId) -> None:
        """See `Turn.leave`."""
        with self._lock:
            self._free += 1
            self._sending[node] -= 1
            self._forget(node)
            self._grant()

    def _grant(self) -> None:
        while self._free:
            able = [w for w in self._waiting if self._sending.get(w.node, 0) < self._per_peer]
            if not able:
                return
            self._grants += 1
            fair = self._grants % FAIR_EVERY == 0
            chosen = min(able, key=lambda waiter: self._rank(waiter, fair=fair))
            self._waiting.remove(chosen)
            self._free -= 1
            self._sending[chosen.node] = self._sending.get(chosen.node, 0) + 1
            self._last[chosen.node] = self._grants
            chosen.granted.set()

    def _rank(self, waiter: _Waiter, *, fair: bool) -> tuple[int, int, int, int]:
        """Smallest first. Who comes anew does not go before those that waited all the while."""
        return (
            0 if fair else -waiter.priority,
            self._sending.get(waiter.node, 0),
            max(waiter.since, self._last.get(waiter.node, 0)),
            waiter.number,
        )

    def _forget(self, node: NodeId) -> None:
        """Keep nothing of peers that are neither sent anything nor wait."""
        if not self._sending.get(node) and all(each.node != node for each in self._waiting):
            self._sending.pop(node, None)
            self._last.pop(node, None)


class Allowance:
    """At most `bytes_s` bytes a second of all sends together; 0 means no limit. Thread-safe."""

    def __init__(self, bytes_s: int, stopping: threading.Event) -> None:
        """stopping: nobody waits any more once it is set."""
        self.limited = bytes_s > 0
        self._bytes_s = bytes_s
        self._stopping = stopping
        self._lock = threading.Lock()
        self._free_at_s = monotonic()

    def spend(self, size_bytes: int) -> None:
        """Account for bytes just sent; sleeps until the average is kept."""
        if not self.limited:
            return
        with self._lock:
            now_s = monotonic()
            self._free_at_s = max(self._free_at_s, now_s - BURST_S) + size_bytes / self._bytes_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            self._stopping.wait(wait_s)
