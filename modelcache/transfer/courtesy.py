"""Letting what a reader waits for have the link: others stop reading until it is there.

A link that is shared evenly gives a chunk that somebody waits for an eighth of what it has, if
seven others are under way: it comes after eight times as long. So whoever reads for nobody holds
back, their senders with them. Not for long, and never more than half of the time: a reader that
asks for chunk after chunk must not keep all else from coming, and where connections are slow for
another reason than that they are many, holding back wins nothing.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final

HOLD_S: Final = 2.0  # at a time; origins close connections on which nothing moves after a minute


class Courtesy:
    """Of all transfers of a process. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._urgent = 0
        self._since_s = 0.0  # when the hold that is on has begun
        self._until_s = 0.0  # when it ends, however many are urgent then
        self._free_until_s = 0.0  # none begins before

    def begin(self) -> None:
        """Something urgent is being read."""
        with self._changed:
            self._urgent += 1
            if self._urgent == 1:
                self._since_s = max(monotonic(), self._free_until_s)
                self._until_s = self._since_s + HOLD_S

    def end(self) -> None:
        """It is over."""
        with self._changed:
            self._urgent -= 1
            if not self._urgent:
                self._over(monotonic())

    def _over(self, now_s: float) -> None:
        """The others have their time, as long as the hold was. The caller locks."""
        held_s = max(0.0, min(now_s, self._until_s) - self._since_s)
        self._free_until_s = max(self._free_until_s, now_s + held_s)
        self._changed.notify_all()

    def give_way(self) -> None:
        """Wait while something urgent is being read, and it is not the others' time."""
        if not self._urgent:  # read without the lock: it is asked for every block
            return
        with self._changed:
            while self._urgent:
                now_s = monotonic()
                if now_s < self._since_s:
                    return
                if now_s >= self._until_s:
                    self._over(self._until_s)
                    self._since_s = max(now_s, self._free_until_s)
                    self._until_s = self._since_s + HOLD_S
                    return
                self._changed.wait(self._until_s - now_s)
