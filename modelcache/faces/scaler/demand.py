"""What the demand for each scale was in the last hour, read at its interval.

One thread says whose turn it is, a few others wait for answers. A reading that fails leaves the
history as it is; a history whose newest sample is too old counts as not known, for a number that
nobody can vouch for must not scale anything down.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, Protocol

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import ModelcacheError, NotFound, UsageError
from modelcache.faces.logs import Log
from modelcache.faces.scaler.checkpoint import source_print
from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import FromPods, FromPrometheus, Key, Scale
from modelcache.faces.scaler.facts import PodFacts
from modelcache.forecast.demand import Sample, rate_between

READERS_MAX: Final = 16
PODS_MAX: Final = 500  # that are read for one scale; more want a Prometheus
HISTORY_S: Final = 3600.0
SAMPLES_MAX: Final = 1200
TICK_S: Final = 0.2
SPAN_MIN: Final = 0.5
"""Of an interval: a counter that stood still and caught up would look like a storm over less."""
STALE_INTERVALS: Final = 3
STALE_MIN_S: Final = 15.0


class Reads(Protocol):
    """What answers: see `scraping.Scraper`."""

    def metrics(
        self, host: str, port: int, path: str, names: Sequence[str], labels: Mapping[str, str]
    ) -> list[float | None]:
        """See the class."""
        ...

    def query(self, query: str) -> float:
        """See the class."""
        ...


@dataclass(slots=True)
class _History:
    source: FromPods | FromPrometheus
    interval_s: float = 0.0
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    counters: dict[str, tuple[float, float]] = field(default_factory=dict)  # when, what; by uid
    due_s: float = -math.inf
    reading: bool = False
    problem: str = "it has not been read yet"

    @property
    def stale_s(self) -> float:
        """From this age on its newest sample says nothing of now."""
        return max(STALE_MIN_S, STALE_INTERVALS * self.interval_s)


class Demand:
    """See the module. Thread-safe."""

    def __init__(
        self,
        scraper: Reads,
        *,
        changed: Callable[[Key], None] = lambda _: None,
        log: Log | None = None,
    ) -> None:
        """changed: told of each new sample."""
        self._scraper = scraper
        self._changed = changed
        self._log = log
        self._histories: dict[Key, _History] = {}
        self._view = View()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(READERS_MAX, thread_name_prefix="modelcache-demand")
        self._thread = threading.Thread(target=self._run, name="modelcache-demand")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, when what is being read has been."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def follow(self, view: View) -> None:
        """Read for the scales of this view from now on. A source that changed begins anew."""
        with self._lock:
            before, self._histories = self._histories, {}
            for key, scale in view.scales.items():
                if scale.source is None:
                    continue
                old = before.get(key)
                if old is None or old.source != scale.source:
                    old = _History(scale.source)
                old.interval_s = scale.interval_s
                self._histories[key] = old
            self._view = view

    def samples(self, key: Key) -> tuple[Sample, ...]:
        """The history; nothing where the newest is too old, or nothing has been read."""
        with self._lock:
            history = self._histories.get(key)
            if history is None or not history.samples:
                return ()
            if monotonic() - history.samples[-1].at_s > history.stale_s:
                return ()
            return tuple(history.samples)

    def kept(self, key: Key) -> tuple[str, tuple[Sample, ...]]:
        """For another scaler: what tells the source, and all that was read of it, in Unix time."""
        ahead_s = wall_clock_s() - monotonic()
        with self._lock:
            history = self._histories.get(key)
            if history is None:
                return source_print(None), ()
            source = history.source
            samples = [each for each in history.samples if math.isfinite(each.rate + each.waiting)]
        return source_print(source), _moved(samples, ahead_s)

    def adopt(self, key: Key, source: str, samples: Sequence[Sample]) -> int:
        """Take what another scaler read of the same source, and say how many samples these were.

        What is too old is left, and what was read here too: within an interval of a sample there
        is nothing to add. Idempotent.
        """
        now_s = monotonic()
        found = _moved(samples, now_s - wall_clock_s())
        with self._lock:
            history = self._histories.get(key)
            if history is None or source_print(history.source) != source:
                return 0
            times = [each.at_s for each in history.samples]
            more = [
                each
                for each in found
                if now_s - HISTORY_S <= each.at_s <= now_s
                and not _near(times, each.at_s, history.interval_s)
            ]
            both = sorted([*more, *history.samples], key=lambda each: each.at_s)
            history.samples = deque(both, maxlen=SAMPLES_MAX)
        return len(more)

    def problem(self, key: Key) -> str:
        """Why the last reading failed; empty where it did not."""
        with self._lock:
            history = self._histories.get(key)
            return "no source of demand is stated" if history is None else history.problem

    def _run(self) -> None:
        while not self._stopped.wait(TICK_S):
            now_s = monotonic()
            with self._lock:
                view = self._view
                due = [
                    (view.scales[key], history)
                    for key, history in self._histories.items()
                    if now_s >= history.due_s and not history.reading
                ]
                for scale, history in due:
                    history.reading = True
                    # From when it was due, so that intervals do not grow by what a reading takes.
                    late = now_s - history.due_s > scale.interval_s
                    history.due_s = (now_s if late else history.due_s) + scale.interval_s
            for scale, history in due:
                self._pool.submit(self._read, scale, history, view)

    def _read(self, scale: Scale, history: _History, view: View) -> None:
        problem, found = "", None
        try:
            found = self._asked(scale, history, view)
        except ModelcacheError as error:
            problem = error.message
        finally:
            with self._lock:
                history.reading = False
                told, history.problem = history.problem, problem
                if found is not None:
                    _append(history, Sample(monotonic(), *found))
        if found is not None:
            self._changed(scale.key)
        if problem and problem != told and self._log is not None:
            self._log.warning("demand_unknown", scale=scale.slot_key, message=problem[:200])

    def _asked(self, scale: Scale, history: _History, view: View) -> tuple[float, float] | None:
        """Requests a second now, and those that wait; None where it takes another reading."""
        source = history.source
        if isinstance(source, FromPrometheus):
            waiting = self._scraper.query(source.waiting) if source.waiting else 0.0
            return max(0.0, self._scraper.query(source.query)), max(0.0, waiting)
        pods = [
            pod
            for pod in view.pods_with(scale.key[0], source.selector)
            if pod.ready and pod.address
        ]
        if len(pods) > PODS_MAX:
            raise UsageError(f"{len(pods)} pods are too many to read one by one; use prometheus")
        values, waiting = self._values(source, pods)
        if not source.counter:
            return max(0.0, math.fsum(value for _, value in values.values())), waiting
        known: list[float] = []
        for uid, (at_s, value) in values.items():
            before = history.counters.get(uid)
            if before is None:
                continue
            if at_s - before[0] < scale.interval_s * SPAN_MIN:
                values[uid] = before
                continue
            rate = rate_between(before[1], value, at_s - before[0])
            known += [] if rate is None else [rate]
        history.counters = values
        return (math.fsum(known), waiting) if known or not values else None

    def _values(
        self, source: FromPods, pods: list[PodFacts]
    ) -> tuple[dict[str, tuple[float, float]], float]:
        """When and what, by the pods' uids; and how many wait.

        A pod that has counted nothing yet has no sample. Raises NotFound where none has one.
        """
        values: dict[str, tuple[float, float]] = {}
        known, waiting = False, 0.0
        names = [source.metric, *([source.waiting] if source.waiting else [])]
        for pod in pods:
            found = self._scraper.metrics(
                pod.address, source.port, source.path, names, source.labels
            )
            known |= found[0] is not None
            values[pod.uid] = (monotonic(), found[0] or 0.0)
            waiting += (found[1] or 0.0) if source.waiting else 0.0
        if pods and not known:
            where = f"{pods[0].address}:{source.port}{source.path}"
            raise NotFound(f"{where} has no sample {source.metric} with these labels")
        return values, max(0.0, waiting)


def _append(history: _History, sample: Sample) -> None:
    history.samples.append(sample)
    while history.samples and sample.at_s - history.samples[0].at_s > HISTORY_S:
        history.samples.popleft()


def _moved(samples: Sequence[Sample], by_s: float) -> tuple[Sample, ...]:
    return tuple(replace(each, at_s=each.at_s + by_s) for each in samples)


def _near(times: Sequence[float], at_s: float, within_s: float) -> bool:
    """Whether one of the times, which are in order, is nearer than that."""
    after = bisect_left(times, at_s)
    return any(abs(each - at_s) < within_s for each in times[max(0, after - 1) : after + 1])
