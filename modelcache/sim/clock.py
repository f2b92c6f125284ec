"""Virtual time: what happens next, and nothing in between.

Things due at the same moment happen in the order in which they were asked for, so a run depends on
nothing but what is put in.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Happening = Callable[[Any], None]


class Clock:
    """A queue of functions with one argument each. Times are seconds since the beginning."""

    __slots__ = ("_order", "_queue", "happened", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.happened = 0  # events so far
        self._order = 0
        self._queue: list[tuple[float, int, Happening, Any]] = []

    def at(self, due_s: float, happening: Happening, about: object) -> None:
        """Call `happening(about)` at a moment; one that has passed counts as now."""
        self._order += 1
        due_s = max(due_s, self.now_s)
        heappush(self._queue, (due_s, self._order, happening, about))

    def after(self, seconds: float, happening: Happening, about: object) -> None:
        """The same, so many seconds from now."""
        self.at(self.now_s + seconds, happening, about)

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._queue:
            return False
        self.now_s, _, happening, about = heappop(self._queue)
        self.happened += 1
        happening(about)
        return True
