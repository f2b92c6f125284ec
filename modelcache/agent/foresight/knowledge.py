"""What a node has learnt of starts: speeds, usual durations, sizes, its score, and what is open.

Kept as one small file in the store, replaced by write, fsync, rename, so that a restarted agent
knows what the one before knew, and a start that a crash has cut in two is still one start.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from modelcache.agent.foresight.records import (
    Histogram,
    Open,
    Prediction,
    Standing,
    open_of_json,
    open_to_json,
)
from modelcache.agent.measuring import ALL_ORIGINS, DISK, MEMORY, MIXED, PEERS, Measuring
from modelcache.domain.manifests import canonical_json
from modelcache.forecast.calibration import (
    LEVELS,
    Promise,
    Score,
    Start,
    seconds_of,
)
from modelcache.forecast.estimate import (
    TYPICAL_MAX,
    Needs,
    Regime,
    Speeds,
    Tier,
    parts_of,
    typical,
)
from modelcache.store import files

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 8 << 20  # ten times what all bounds together come to
SIZES_MAX: Final = 1000  # models whose size is remembered after they are gone
OPEN_MAX: Final = 1000  # as many as can be wanted
SERIES_MAX: Final = 100  # models with a histogram of their own; others are `other`
OTHER: Final = "other"
BUCKETS_S: Final = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
RATIOS: Final = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class Knowledge:
    """See the module. Thread-safe."""

    def __init__(self, path: Path, measuring: Measuring, declared: Speeds) -> None:
        """declared: what the settings say where nothing was measured."""
        self._path = path
        self._measuring = measuring
        self._declared = declared
        self._lock = threading.Lock()
        self._score = Score()
        self._resolving: deque[float] = deque(maxlen=TYPICAL_MAX)
        self._finishing = {regime: deque[float](maxlen=TYPICAL_MAX) for regime in Regime}
        self._mounting: deque[float] = deque(maxlen=TYPICAL_MAX)
        self._sizes: dict[str, tuple[str, int]] = {}
        self._open: dict[str, Open] = {}
        self._times: dict[tuple[str, Tier], Histogram] = {}
        self._ratios = Histogram(RATIOS)
        self._ended: Counter[bool] = Counter()

    # Predicting

    def speeds(self, origin: str, regime: Regime) -> Speeds:
        """What was measured. origin: as `measuring.origin_of` names it."""
        bytes_s = self._measuring.bytes_s
        with self._lock:
            return Speeds(
                origin_bytes_s=bytes_s(origin) or bytes_s(ALL_ORIGINS),
                peer_bytes_s=bytes_s(PEERS),
                mixed_bytes_s=bytes_s(MIXED),
                disk_bytes_s=bytes_s(DISK),
                load_bytes_s=bytes_s(MEMORY),
                resolve_s=typical(self._resolving),
                finish_s=typical(self._finishing[regime]),
                mount_s=typical(self._mounting),
            )

    def predict(
        self, model: str, needs: Needs, origin: str, *, chunk_bytes: int | None = None
    ) -> Prediction | None:
        """None where nothing was measured or declared that it could rest on.

        chunk_bytes: of a model that is read while it comes: it can be mounted at once, and is in
        memory when the last chunk has been loaded.
        """
        measured = self.speeds(origin, needs.regime)
        known = measured.or_else(self._declared)
        parts = parts_of(needs, known)
        if parts is None:
            return None
        with self._lock:
            factors = self._score.factors(model, needs.tier, needs.regime)
            confident = self._score.confident
        p50, p90 = (factors[level] for level in LEVELS)
        chunk_s, stored_s = None, parts.stored_s
        if chunk_bytes is not None and needs.missing_bytes > 0:
            chunk_s = parts.fetch_s * min(1.0, chunk_bytes / needs.missing_bytes)
            stored_s = parts.resolve_s
        loaded_s = parts.loaded_s(chunk_s)
        rests = parts_of(needs, measured) is not None
        return Prediction(
            needs=needs,
            parts=parts,
            p50_s=stored_s * p50 + parts.mount_s,
            p90_s=stored_s * p90 + parts.mount_s,
            loaded_p50_s=None if loaded_s is None else loaded_s * p50,
            loaded_p90_s=None if loaded_s is None else loaded_s * p90,
            measured=rests,
            confident=confident and rests,
        )

    # Learning

    def size(self, wanted_id: str) -> tuple[str, int] | None:
        """Model id and bytes of a ref, as they were when it was last resolved here."""
        with self._lock:
            return self._sizes.get(wanted_id)

    def sized(self, wanted_id: str, model_id: str, size_bytes: int) -> None:
        """It is known what a ref means."""
        with self._lock:
            self._sizes.pop(wanted_id, None)
            self._sizes[wanted_id] = (model_id, size_bytes)
            while len(self._sizes) > SIZES_MAX:
                del self._sizes[next(iter(self._sizes))]

    def is_open(self, wanted_id: str) -> bool:
        """Whether a start was predicted, and is not over."""
        with self._lock:
            return wanted_id in self._open

    def freeze(self, wanted_id: str, model: str, prediction: Prediction, now_s: float) -> None:
        """Hold a start to what is predicted of it now, unless it is held to something already."""
        mount_s = prediction.parts.mount_s
        promise = Promise(
            model,
            prediction.needs.tier,
            prediction.needs.regime,
            prediction.parts.stored_s,
            prediction.p50_s - mount_s,
            prediction.p90_s - mount_s,
        )
        with self._lock:
            if len(self._open) < OPEN_MAX:
                self._open.setdefault(wanted_id, Open(promise, prediction.needs, now_s))

    def end(self, wanted_id: str, now_s: float, *, finished: bool) -> Open | None:
        """A start is over; None where none was predicted. finished: it is ready, not given up."""
        with self._lock:
            opened = self._open.pop(wanted_id, None)
            if opened is None:
                return None
            start = Start(opened.promise, max(0.0, now_s - opened.began_at_s), finished)
            self._score.add(start)
            self._ended[finished] += 1
            if finished and opened.promise.tier is not Tier.WARM:
                self._ratios.add(start.ratio)
            return opened

    def took(self, model: str, tier: Tier, seconds: float) -> None:
        """A start became ready, predicted or not."""
        with self._lock:
            known = {each for each, _ in self._times}
            name = model if model in known or len(known) < SERIES_MAX else OTHER
            self._times.setdefault((name, tier), Histogram(BUCKETS_S)).add(seconds)

    def fetched(self, opened: Open, origin: str, *, resolving_s: float, wall_s: float) -> None:
        """A pull that fetched all that a start lacked took so long, of which resolving so long."""
        regime = opened.needs.regime
        parts = parts_of(opened.needs, self.speeds(origin, regime))
        with self._lock:
            self._resolving.append(resolving_s)
            if parts is not None:
                rest_s = wall_s - resolving_s - parts.fetch_s
                self._finishing[regime].append(max(0.0, rest_s))

    def mounted(self, seconds: float) -> None:
        """A volume was shown."""
        with self._lock:
            self._mounting.append(seconds)

    # Looking

    def standing(self) -> Standing:
        """The score of this moment."""
        with self._lock:
            starts = self._score.fetched
            finished = sum(each.finished for each in starts)
            return Standing(
                starts=len(starts),
                finished=finished,
                abandoned=len(starts) - finished,
                coverage={level: self._score.coverage(level) for level in LEVELS},
                error=self._score.error,
                confident=self._score.confident,
            )

    def times(self) -> dict[tuple[str, Tier], tuple[list[float], float]]:
        """Cumulative counts (of BUCKETS_S and of all) and sum, by model and tier."""
        with self._lock:
            return {key: (each.cumulative(), each.total) for key, each in self._times.items()}

    def ratios(self) -> tuple[list[float], float]:
        """Truth by prediction: cumulative counts (of RATIOS and of all) and sum."""
        with self._lock:
            return self._ratios.cumulative(), self._ratios.total

    def ended(self) -> dict[bool, int]:
        """Starts since the agent began, by whether they became ready."""
        with self._lock:
            return {finished: self._ended[finished] for finished in (True, False)}

    # Kept

    def load(self, wanted: Iterable[str], now_s: float) -> None:
        """Take up what is kept; a file that cannot be read counts as not there.

        wanted: ids of what is wanted; other starts were given up while no agent lived.
        """
        try:
            with self._path.open("rb") as file:
                plain = json.loads(file.read(FILE_BYTES_MAX))
            if plain["format"] != FORMAT:
                return
            self._take(plain)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        still = set(wanted)
        for wanted_id in [each for each in self._open if each not in still]:
            self.end(wanted_id, now_s, finished=False)

    def save(self) -> None:
        """Durable on return. Raises StoreError."""
        with self._lock:
            plain = {
                "format": FORMAT,
                "rates": self._measuring.to_json(),
                "score": self._score.to_json(),
                "resolving": list(self._resolving),
                "finishing": {regime.value: list(x) for regime, x in self._finishing.items()},
                "mounting": list(self._mounting),
                "sizes": {name: list(each) for name, each in self._sizes.items()},
                "open": {name: open_to_json(each) for name, each in self._open.items()},
            }
        with files.translated(self._path):
            files.atomic_write(self._path, canonical_json(plain))

    def _take(self, plain: Any) -> None:  # noqa: ANN401 - JSON
        """All or nothing. Raises KeyError, TypeError, ValueError, AttributeError."""
        score = Score.from_json(plain["score"])
        durations = [
            [seconds_of(each) for each in plain[name][-TYPICAL_MAX:]]
            for name in ("resolving", "mounting")
        ]
        finishing = {
            regime: [
                seconds_of(each) for each in plain["finishing"].get(regime.value, [])[-TYPICAL_MAX:]
            ]
            for regime in Regime
        }
        sizes = {
            str(name): (str(model), max(0, int(size)))
            for name, (model, size) in list(plain["sizes"].items())[-SIZES_MAX:]
        }
        opened = {
            str(name): open_of_json(each) for name, each in list(plain["open"].items())[:OPEN_MAX]
        }
        self._measuring.take(plain["rates"])
        with self._lock:
            self._score, self._sizes, self._open = score, sizes, opened
            self._resolving.extend(durations[0])
            self._mounting.extend(durations[1])
            for regime, seconds in finishing.items():
                self._finishing[regime].extend(seconds)
