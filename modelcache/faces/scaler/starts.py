"""How long replicas took from their binding to being ready, by whether their node had the model.

A start counts only when it was seen under way: of a pod that is ready already nobody knows whether
it was so all the time. Pods that go before they are ready are counted apart, never as starts; they
would make the others look faster than they are if they were left out without a word. A scaler that
begins in the middle of a start cannot tell whether a node that is warm now was so when the replica
was bound: such a start, of minutes perhaps, does not count as a warm one.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import Key
from modelcache.faces.scaler.facts import PodFacts
from modelcache.forecast.outlook import Seen, Starting

KEPT: Final = 200
"""Starts of each kind: enough for a 90th percentile, few enough to follow a changed cluster."""
FRESH_S: Final = 10.0
"""So long after its binding a pod's node is as it was then: a fetch takes longer."""


@dataclass(slots=True)
class _Book:
    warm: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    cold: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    abandoned: int = 0
    under_way: dict[str, bool] = field(default_factory=dict)  # whether warm, by the pod's uid
    looked: bool = False
    untold: set[str] = field(default_factory=set)  # of those, whose beginning nobody saw


class Starts:
    """See the module. `look` is called by one thread; anybody may ask."""

    def __init__(self) -> None:
        self._books: dict[Key, _Book] = {}
        self._lock = threading.Lock()

    def look(self, view: View) -> None:
        """Learn from a new view."""
        with self._lock:
            self._books = {key: self._books.get(key) or _Book() for key in view.scales}
            for key, book in self._books.items():
                _learn(book, view, key)

    def seen(self, key: Key) -> Seen:
        """Starts that came to their end."""
        with self._lock:
            book = self._books.get(key)
            if book is None:
                return Seen()
            return Seen(tuple(book.warm), tuple(book.cold), book.abandoned)

    def under_way(self, key: Key, view: View) -> tuple[Starting, ...]:
        """Replicas that are starting, as the view has them."""
        server = view.servers.get(key)
        if server is None:
            return ()
        with self._lock:
            book = self._books.get(key)
            warm = dict(book.under_way) if book is not None else {}
        return tuple(
            Starting(warm.get(pod.uid, False), _age_s(pod, view.at_s))
            for pod in server.pods
            if pod.starting
        )


def _learn(book: _Book, view: View, key: Key) -> None:
    pods = {pod.uid: pod for pod in view.servers[key].pods}
    for uid in list(book.under_way):
        pod = pods.get(uid)
        if pod is not None and pod.starting:
            continue
        warm, untold = book.under_way.pop(uid), uid in book.untold
        book.untold.discard(uid)
        if pod is None or not pod.ready or pod.ready_s is None or pod.bound_s is None:
            book.abandoned += 1
        elif not untold:
            (book.warm if warm else book.cold).append(max(0.0, pod.ready_s - pod.bound_s))
    for uid, pod in pods.items():
        if pod.starting and uid not in book.under_way:
            warm = book.under_way[uid] = _is_warm(view, key, pod.node)
            if warm and not book.looked and _age_s(pod, view.at_s) > FRESH_S:
                book.untold.add(uid)
    book.looked = True


def _is_warm(view: View, key: Key, node: str) -> bool:
    scale = view.scales[key]
    report = view.reports.get(node)
    server = view.servers[key]
    if report is None:
        return False
    return any(
        each.warm
        and (
            (each.wanted_id and each.wanted_id == scale.wanted)
            or (each.model_id and each.model_id == server.model_id)
        )
        for each in report.models
    )


def _age_s(pod: PodFacts, now_s: float) -> float:
    return 0.0 if pod.bound_s is None else max(0.0, now_s - pod.bound_s)
