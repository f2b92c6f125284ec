"""Sums over a node's life, for metrics: how pulls ended, in what time, and what came from where."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

BUCKETS_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
HOSTS_MAX: Final = 64  # origins told apart; what comes after them is one more, `other`
OTHER: Final = "other"
PEER: Final = "peer"


@dataclass(frozen=True, slots=True)
class Sums:
    """One moment's. received: bytes by kind (a scheme, or `peer`) and host."""

    pulls: Mapping[str, int] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    seconds_sum: float = 0.0
    received: Mapping[tuple[str, str], int] = field(default_factory=dict)
    stored_bytes: int = 0
    retries: int = 0


class Tally:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulls: Counter[str] = Counter()
        self._buckets: Counter[int] = Counter()
        self._seconds_sum = 0.0
        self._received: Counter[tuple[str, str]] = Counter()
        self._stored_bytes = 0
        self._retries = 0

    def ended(self, result: str, seconds: float) -> None:
        """An attempt is over. result: one of a few words."""
        place = next((n for n, most in enumerate(BUCKETS_S) if seconds <= most), len(BUCKETS_S))
        with self._lock:
            self._pulls[result] += 1
            self._buckets[place] += 1
            self._seconds_sum += seconds

    def received(self, sources: Mapping[str, int]) -> None:
        """Bytes that came from sources, by their names in reports."""
        with self._lock:
            for name, received_bytes in sources.items():
                label = source_label(name)
                known = label in self._received or len(self._received) < HOSTS_MAX
                self._received[label if known else (label[0], OTHER)] += received_bytes

    def stored(self, more_bytes: int, more_retries: int) -> None:
        """A pull has come so much further."""
        with self._lock:
            self._stored_bytes += more_bytes
            self._retries += more_retries

    def sums(self) -> Sums:
        """What has come together so far. seconds: cumulative counts, one more than BUCKETS_S."""
        with self._lock:
            counts, total = [], 0
            for place in range(len(BUCKETS_S) + 1):
                total += self._buckets[place]
                counts.append(float(total))
            return Sums(
                dict(self._pulls),
                tuple(counts),
                self._seconds_sum,
                dict(self._received),
                self._stored_bytes,
                self._retries,
            )


def source_label(name: str) -> tuple[str, str]:
    """Kind and host of a source's name. All peers are one: a node has its own metrics."""
    if name.startswith(f"{PEER}:"):
        return PEER, ""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return OTHER, ""
    return scheme, rest.partition("/")[0].partition("?")[0][:253]
