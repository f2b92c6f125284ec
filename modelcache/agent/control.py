"""How a pull is steered while it runs: paused, given a priority, held to a rate."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modelcache.domain.members import Priority


class PullControl:
    """Thread-safe. Whoever is attached hears of every change at once, in the changer's thread.

    One is told after the other, and each looks at the present values: so what it applied last is
    what holds, however many threads change things.
    """

    def __init__(self, *, priority: int = Priority.PREWARM, limit_bytes_s: int = 0) -> None:
        """limit_bytes_s: 0 means no limit."""
        self._telling = threading.RLock()
        self._attached: list[Callable[[], None]] = []
        self._paused = False
        self._priority = priority
        self._limit_bytes_s = limit_bytes_s

    @property
    def paused(self) -> bool:
        """Whether something more urgent has the bandwidth."""
        return self._paused

    @property
    def priority(self) -> int:
        """0 to 100; peers that are asked see it."""
        return self._priority

    @property
    def limit_bytes_s(self) -> int:
        """Most bytes a second; 0 means no limit."""
        return self._limit_bytes_s

    def set_paused(self, *, paused: bool) -> None:
        """Pause, or go on. Idempotent."""
        with self._telling:
            if paused != self._paused:
                self._paused = paused
                self._tell()

    def set_priority(self, priority: int) -> None:
        """Another reason to be fetched. Idempotent."""
        with self._telling:
            if priority != self._priority:
                self._priority = priority
                self._tell()

    def set_limit(self, bytes_s: int) -> None:
        """Another limit; 0 for none. Idempotent."""
        with self._telling:
            if bytes_s != self._limit_bytes_s:
                self._limit_bytes_s = bytes_s
                self._tell()

    def attach(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called now and after every change; returns what ends that."""
        with self._telling:
            self._attached.append(changed)
            changed()

        def detach() -> None:
            with self._telling:
                self._attached.remove(changed)

        return detach

    def _tell(self) -> None:
        for changed in list(self._attached):
            changed()
