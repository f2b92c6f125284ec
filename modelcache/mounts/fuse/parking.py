"""Reads of bytes that are not here yet: kept until they are, or until their time is over.

A read that waited in a thread of its own would cost a thread; a hundred readers are common. So a
read is written down here, and one thread answers whatever can be answered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

PARKED_MAX: Final = (
    16_384  # reads at once; the kernel has a thousand of readahead, and one a thread
)
_INTERRUPTED_MAX: Final = 1024


@dataclass(slots=True)
class Parked:
    """One read that waits. until_s, again_s: as time.monotonic counts.

    asked: of which flights. again_s: when they are asked again.
    """

    unique: int
    node_id: int
    number: int
    offset: int
    size_bytes: int
    until_s: float
    asked: int = -1
    again_s: float = 0.0


class Parking:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parked: dict[int, Parked] = {}
        self._interrupted: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._parked)

    def add(self, parked: Parked) -> bool:
        """Let a read wait; False if it was interrupted meanwhile, or too many wait."""
        with self._lock:
            if parked.unique in self._interrupted:
                del self._interrupted[parked.unique]
                return False
            if len(self._parked) >= PARKED_MAX:
                return False
            self._parked[parked.unique] = parked
            return True

    def take(self, unique: int) -> Parked | None:
        """A read that will be answered by who takes it; None if somebody else does."""
        with self._lock:
            return self._parked.pop(unique, None)

    def interrupt(self, unique: int) -> Parked | None:
        """As `take`; one that does not wait yet will not begin to."""
        with self._lock:
            parked = self._parked.pop(unique, None)
            if parked is None:
                self._interrupted[unique] = None
                while len(self._interrupted) > _INTERRUPTED_MAX:
                    self._interrupted.popitem(last=False)
            return parked

    def all(self) -> list[Parked]:
        """Those that wait, the longest first."""
        with self._lock:
            return list(self._parked.values())

    def next_due_s(self) -> float:
        """When the time of the first is over; infinite when none waits."""
        with self._lock:
            return min((each.until_s for each in self._parked.values()), default=float("inf"))
