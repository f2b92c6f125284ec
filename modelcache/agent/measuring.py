"""How fast this node is given bytes, by whom, and how fast its disk takes them.

What all pulls of the node get together counts, for they share its links: bytes are summed over
windows in which at least one transfer moves, and each window is one moment of `forecast.rates`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelcache.agent.tally import PEER, source_label
from modelcache.forecast.calibration import NAME_MAX, seconds_of
from modelcache.forecast.rates import Moment, Rate

WINDOW_S: Final = 1.0  # shorter ones see single chunks
SHORT_S: Final = 0.25  # what a transfer of less than a window says is taken from here on
ORIGINS_MAX: Final = 32  # told apart; others count only for all origins together
ALL_ORIGINS: Final = "origin"
PEERS: Final = PEER
DISK: Final = "disk"


@dataclass(slots=True)
class _Window:
    """One that is open. began_s: monotonic. received: bytes by source."""

    began_s: float
    received: Counter[str] = field(default_factory=Counter)


class Measuring:
    """Thread-safe. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[str, Rate] = {}
        self._seen: dict[str, Counter[str]] = {}  # of each transfer that moves, what it has told
        self._window: _Window | None = None

    def moved(self, transfer: str, sources: Mapping[str, int], now_s: float) -> None:
        """A transfer has got so much from each source since it began."""
        with self._lock:
            known = self._seen.get(transfer)
            told = _by_source(sources)
            self._seen[transfer] = told
            if self._window is None:
                self._window = _Window(now_s)
            if known is not None:
                self._window.received += told - known
            if now_s - self._window.began_s >= WINDOW_S:
                self._close(now_s)
                self._window = _Window(now_s)

    def rests(self, transfer: str, now_s: float) -> None:
        """A transfer has ended, or waits: it says nothing of how fast its sources are."""
        with self._lock:
            if self._seen.pop(transfer, None) is None or self._seen:
                return
            window = self._window
            if window is not None and now_s - window.began_s >= SHORT_S:
                self._close(now_s)
            self._window = None

    def wrote(self, size_bytes: int, writing_s: float, writers: int) -> None:
        """A pull is over. writing_s: summed over its writers, who could all write at once."""
        with self._lock:
            self._rate(DISK).observe(size_bytes, writing_s / max(1, writers))

    def bytes_s(self, name: str) -> float | None:
        """What is to be expected of a source; None where nothing is known of it.

        name: ALL_ORIGINS, PEERS, DISK, or an origin as `origin_of` names it.
        """
        with self._lock:
            known = self._rates.get(name)
            return known.bytes_s if known is not None else None

    def to_json(self) -> dict[str, list[list[float]]]:
        """Plain values: the moments of each source."""
        with self._lock:
            return {
                name: [[round(each.bytes_s, 1), round(each.seconds, 3)] for each in rate]
                for name, rate in self._rates.items()
            }

    def take(self, plain: Any) -> None:  # noqa: ANN401 - JSON
        """Inverse of `to_json`. Raises TypeError, ValueError, AttributeError for what is none."""
        rates = {
            str(name)[:NAME_MAX]: Rate(
                Moment(seconds_of(bytes_s), seconds_of(seconds)) for bytes_s, seconds in moments
            )
            for name, moments in list(plain.items())[: ORIGINS_MAX + 2]
        }
        with self._lock:
            self._rates = rates

    def names(self) -> list[str]:
        """Everything of which something is known, by name."""
        with self._lock:
            return sorted(self._rates)

    def _close(self, now_s: float) -> None:
        window = self._window
        if window is None:
            return
        seconds = now_s - window.began_s
        origins = 0
        for name, received in window.received.items():
            if name != PEERS:
                origins += received
            if name in self._rates or len(self._rates) < ORIGINS_MAX or name == PEERS:
                self._rate(name).observe(received, seconds)
        self._rate(ALL_ORIGINS).observe(origins, seconds)

    def _rate(self, name: str) -> Rate:
        return self._rates.setdefault(name, Rate())


def origin_of(place: str) -> str:
    """What an origin is called here: its scheme and host."""
    kind, host = source_label(place)
    return f"{kind}://{host}"


def _by_source(sources: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, received in sources.items():
        found[PEERS if name.startswith(f"{PEER}:") else origin_of(name)] += received
    return found
