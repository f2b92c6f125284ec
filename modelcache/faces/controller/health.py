"""How a controller is: whether it lives, works, and what it has changed; for probes and metrics.

A replica that waits is as healthy as the one that works. One that has not moved for `STALLED_S` is
neither: an API server that is away is no reason, as loops go round without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from modelcache.agent.clock import wall_clock_s

STALLED_S: Final = 180.0  # a round over thousands of objects, each refused after a time-out, moves
BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KINDS: Final = ("Node", "ModelPrefetch", "Pod")


class Health:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """clock: seconds that only grow."""
        self._clock = clock
        self._lock = threading.Lock()
        self._moved_s = clock()
        self._heard = False
        self._leading = False
        self._synced = False
        self.registry = CollectorRegistry(auto_describe=False)
        self._lead = Gauge(
            "modelcache_controller_leading",
            "Whether this replica is the one that works.",
            registry=self.registry,
        )
        self._rounds = Histogram(
            "modelcache_controller_round_seconds",
            "Time of one round over all objects.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._round_end = Gauge(
            "modelcache_controller_last_round_timestamp_seconds",
            "When the last round ended, in Unix time; 0 before the first.",
            registry=self.registry,
        )
        self._objects = Counter(
            "modelcache_controller_looks",
            "Objects looked at, by kind and whether what was to change could be changed.",
            ["kind", "result"],
            registry=self.registry,
        )
        ProcessCollector(namespace="modelcache", registry=self.registry)
        for kind in KINDS:
            for result in ("ok", "failed"):
                self._objects.labels(kind, result)

    # What happens

    def asked(self, *, heard: bool) -> None:
        """The Lease was asked for; whether the API server has answered."""
        with self._lock:
            self._heard = self._heard or heard
            if not self._leading:
                self._moved_s = self._clock()

    def leads(self, *, leading: bool) -> None:
        """From now on this replica works, or no more."""
        with self._lock:
            self._leading, self._synced, self._moved_s = leading, False, self._clock()
        self._lead.set(leading)

    def waits(self) -> None:
        """The loop went round, though not all is known yet."""
        with self._lock:
            self._moved_s = self._clock()

    def looked(self, kind: str, *, failed: bool) -> None:
        """One object was looked at."""
        self.waits()
        self._objects.labels(kind, "failed" if failed else "ok").inc()

    def rounded(self, seconds: float) -> None:
        """A round is over."""
        with self._lock:
            self._synced, self._moved_s = True, self._clock()
        self._rounds.observe(seconds)
        self._round_end.set(wall_clock_s())

    # What is asked

    def not_alive(self) -> str | None:
        """Why it should be started anew, if so."""
        with self._lock:
            still_s = self._clock() - self._moved_s
        return f"nothing has moved for {still_s:.0f} s" if still_s > STALLED_S else None

    def not_ready(self) -> str | None:
        """Why it does not do its part yet, if so."""
        with self._lock:
            if not self._heard:
                return "the API server has not answered yet"
            if self._leading and not self._synced:
                return "not all objects are known yet"
        return self.not_alive()
