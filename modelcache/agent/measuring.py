"""How fast this node is given bytes, by whom, and how fast its disk takes them.

What all pulls of the node get together counts, for they share its links: bytes are summed over
windows in which at least one transfer moves, and each window is one moment of `forecast.rates`.
One tells how fast a source is only where that gave nearly all: an origin that is read beside peers
is read slowly on purpose. What they give together is known as MIXED.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelcache.agent.tally import PEER, source_label
from modelcache.forecast.calibration import NAME_MAX, seconds_of
from modelcache.forecast.rates import Moment, Rate

WINDOW_S: Final = 1.0  # shorter ones see single chunks
SHORT_S: Final = 0.25  # what a transfer of less than a window says is taken from here on
ORIGINS_MAX: Final = 32  # told apart; others count only for all origins together
RAMP_S: Final = 2.0  # the planner doubles connections every half second
TAIL_S: Final = 2.0  # the last chunks of 16 MiB, at the speed of one connection
SOLE_SHARE: Final = 0.95  # of a window's bytes; the rest are files too small to ask peers for
ALL_ORIGINS: Final = "origin"
PEERS: Final = PEER
MIXED: Final = "mixed"  # an origin and peers at once, as nodes that fetch together have it
DISK: Final = "disk"
MEMORY: Final = "memory"


@dataclass(slots=True)
class _Window:
    """Bytes by source that came in it. seconds: its length, once it is over."""

    began_s: float
    seconds: float = 0.0
    received: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Burst:
    """Time in which at least one transfer moves. held: windows that may be its last.

    told: whether one was taken in. whole: all that came.
    """

    began_s: float
    window: _Window
    held: deque[_Window] = field(default_factory=deque)
    told: bool = False
    whole: _Window = field(default_factory=lambda: _Window(0.0))


class Measuring:
    """Thread-safe. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[str, Rate] = {}
        self._seen: dict[str, Counter[str]] = {}  # of each transfer that moves, what it has told
        self._burst: _Burst | None = None

    def moved(self, transfer: str, sources: Mapping[str, int], now_s: float) -> None:
        """A transfer has got so much from each source since it began."""
        with self._lock:
            known = self._seen.get(transfer)
            told = _by_source(sources)
            self._seen[transfer] = told
            burst = self._burst
            if burst is None:
                burst = self._burst = _Burst(now_s, _Window(now_s))
            if known is not None:
                burst.window.received += told - known
            if now_s - burst.window.began_s >= WINDOW_S:
                self._over(burst, now_s)

    def rests(self, transfer: str, now_s: float) -> None:
        """A transfer has ended, or waits: it says nothing of how fast its sources are."""
        with self._lock:
            if self._seen.pop(transfer, None) is None or self._seen:
                return
            burst, self._burst = self._burst, None
            if burst is None:
                return
            if now_s - burst.window.began_s >= SHORT_S:
                self._over(burst, now_s)
            if not burst.told and burst.whole.seconds > 0:
                self._take_in(burst.whole)  # it was over too soon to tell anything better

    def wrote(self, size_bytes: int, writing_s: float, writers: int) -> None:
        """A pull is over. writing_s: summed over its writers, who could all write at once."""
        with self._lock:
            self._rate(DISK).observe(size_bytes, writing_s / max(1, writers))

    def loaded(self, size_bytes: int, seconds: float) -> None:
        """So much came from the disk into memory."""
        with self._lock:
            self._rate(MEMORY).observe(size_bytes, seconds)

    def bytes_s(self, name: str) -> float | None:
        """What is to be expected of a source; None where nothing is known of it.

        name: ALL_ORIGINS, PEERS, MIXED, DISK, MEMORY, or an origin as `origin_of` names it.
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
            for name, moments in list(plain.items())[: ORIGINS_MAX + 5]
        }
        with self._lock:
            self._rates = rates

    def names(self) -> list[str]:
        """Everything of which something is known, by name."""
        with self._lock:
            return sorted(self._rates)

    def _over(self, burst: _Burst, now_s: float) -> None:
        """A window is over. Those are taken in that are neither at the beginning nor at the end.

        A transfer opens its connections step by step, and waits for its last chunks with few of
        them: that says how transfers go and not what the source can give. What it costs each start
        is learnt as its `finish`.
        """
        window, burst.window = burst.window, _Window(now_s)
        window.seconds = now_s - window.began_s
        burst.whole.received += window.received
        burst.whole.seconds += window.seconds
        if window.began_s - burst.began_s >= RAMP_S:
            burst.held.append(window)
        while burst.held and burst.held[0].began_s + burst.held[0].seconds <= now_s - TAIL_S:
            self._take_in(burst.held.popleft())
            burst.told = True

    def _take_in(self, window: _Window) -> None:
        """For the source that gave nearly all of it, or for several together."""
        seconds, total = window.seconds, sum(window.received.values())
        peers = window.received[PEERS]
        most = SOLE_SHARE * total
        if peers >= most:
            self._rate(PEERS).observe(total, seconds)
        elif total - peers < most:
            self._rate(MIXED).observe(total, seconds)
        else:
            self._rate(ALL_ORIGINS).observe(total, seconds)
            for name, received in window.received.items():
                known = name in self._rates or len(self._rates) < ORIGINS_MAX
                if received >= most and known:
                    self._rate(name).observe(total, seconds)

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
