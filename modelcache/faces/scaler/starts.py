"""How long replicas took from their binding to being ready, by whether their node had the model.

A start counts only when it was seen under way: of a pod that is ready already nobody knows whether
it was so all the time. Pods that go before they are ready are counted apart, never as starts; they
would make the others look faster than they are if they were left out without a word. A scaler that
begins in the middle of a start cannot tell whether a node that is warm now was so when the replica
was bound: such a start, of minutes perhaps, does not count as a warm one, unless a checkpoint of
the scaler before says what the node had. Where another model, other pods or other devices are
stated it begins anew: other starts need not take as long.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from modelcache.faces.scaler.checkpoint import Ended, KeptStarts, server_of, server_print
from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import Key, Scale
from modelcache.faces.scaler.facts import PodFacts
from modelcache.forecast.outlook import Seen, Starting

KEPT: Final = 200
"""Starts of each kind: enough for a 90th percentile, few enough to follow a changed cluster."""
FRESH_S: Final = 10.0
"""So long after its binding a pod's node is as it was then: a fetch takes longer."""


@dataclass(slots=True)
class _Book:
    scale: Scale
    warm: deque[Ended] = field(default_factory=lambda: deque(maxlen=KEPT))
    cold: deque[Ended] = field(default_factory=lambda: deque(maxlen=KEPT))
    abandoned: int = 0
    under_way: dict[str, bool] = field(default_factory=dict)  # whether warm, by the pod's uid
    looked: bool = False
    untold: set[str] = field(default_factory=set)  # of those, whose beginning nobody saw


class Starts:
    """See the module. `look` is called by one thread; anybody may ask."""

    def __init__(self) -> None:
        self._books: dict[Key, _Book] = {}
        self._view = View()
        self._lock = threading.Lock()

    def look(self, view: View) -> None:
        """Learn from a new view."""
        with self._lock:
            self._view = view
            self._books = {
                key: _book(self._books.get(key), scale) for key, scale in view.scales.items()
            }
            for key, book in self._books.items():
                _learn(book, view, key)

    def seen(self, key: Key) -> Seen:
        """Starts that came to their end."""
        with self._lock:
            book = self._books.get(key)
            if book is None:
                return Seen()
            warm, cold = ([each.seconds for each in kind] for kind in (book.warm, book.cold))
            return Seen(tuple(warm), tuple(cold), book.abandoned)

    def kept(self, key: Key) -> tuple[str, KeptStarts]:
        """For another scaler: what tells the server, and its starts."""
        with self._lock:
            book = self._books.get(key)
            if book is None:
                return "", KeptStarts()
            told = {uid: warm for uid, warm in book.under_way.items() if uid not in book.untold}
            kept = KeptStarts(tuple(book.warm), tuple(book.cold), book.abandoned, told)
            return server_print(book.scale), kept

    def adopt(self, key: Key, server: str, kept: KeptStarts) -> bool:
        """Take what another scaler saw of the same server, and say whether it is that. Idempotent.

        Of a pod that is gone since nobody knows whether it was ready before: it counts as nothing.
        """
        with self._lock:
            book = self._books.get(key)
            if book is None or server_print(book.scale) != server:
                return False
            pods = {pod.uid: pod for pod in self._view.servers[key].pods}
            ended = {True: list(kept.warm), False: list(kept.cold)}
            for uid, warm in kept.under_way.items():
                pod = pods.get(uid)
                if pod is None:
                    continue
                took = _ended(pod)
                if took is not None:
                    ended[warm].append(took)
                elif uid in book.untold or (pod.starting and uid not in book.under_way):
                    book.under_way[uid] = warm
                    book.untold.discard(uid)
            book.warm = _merged(book.warm, ended[True])
            book.cold = _merged(book.cold, ended[False])
            book.abandoned = max(book.abandoned, kept.abandoned)
            return True

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


def _book(before: _Book | None, scale: Scale) -> _Book:
    if before is None:
        return _Book(scale)
    if before.scale is not scale:
        old = before.scale
        if (old.uid, server_of(old)) != (scale.uid, server_of(scale)):
            return _Book(scale)
        before.scale = scale
    return before


def _merged(ours: Iterable[Ended], theirs: Iterable[Ended]) -> deque[Ended]:
    """All that one of the two has, oldest first. Both know the same times, which pods tell."""
    both = Counter(ours) | Counter(theirs)
    ordered = sorted(both.elements(), key=lambda each: each.ready_s)
    return deque(ordered, maxlen=KEPT)


def _ended(pod: PodFacts) -> Ended | None:
    if not pod.ready or pod.ready_s is None or pod.bound_s is None:
        return None
    return Ended(pod.ready_s, max(0.0, pod.ready_s - pod.bound_s))


def _learn(book: _Book, view: View, key: Key) -> None:
    pods = {pod.uid: pod for pod in view.servers[key].pods}
    for uid in list(book.under_way):
        pod = pods.get(uid)
        if pod is not None and pod.starting:
            continue
        warm, untold = book.under_way.pop(uid), uid in book.untold
        book.untold.discard(uid)
        took = None if pod is None else _ended(pod)
        if took is None:
            book.abandoned += 1
        elif not untold:
            (book.warm if warm else book.cold).append(took)
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
