"""Before a node goes: what only it has, others should have.

Two things can be lost with a node. Chunks of a transfer that it has read from an origin, and that
others still want: it fetches no more, says which chunks it has, and stays until nobody has asked
for one in a while. And models that no other node of the cell has: for each, one other node is asked
to keep it, and given the time to fetch it. Both end when the time is over: what is lost then, an
origin has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final

from modelcache.agent.engine import Engine
from modelcache.agent.swarm.active import Active
from modelcache.agent.swarm.announcing import Announcer
from modelcache.agent.swarm.neighbours import Neighbours
from modelcache.agent.swarm.shelf import Shelf
from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import ModelId
from modelcache.domain.ring import first_of
from modelcache.peers.messages import Announcement

QUIET_S: Final = 3.0  # others announce every two seconds; who still wants a chunk has asked then
ASK_S: Final = 1.0  # how often a node is asked whether it has what it was handed
MODELS_MAX: Final = 64  # handed over at most, the last used first

Say = Callable[[tuple[Holding, ...], tuple[ModelId, ...]], Announcement]


class Handover:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        active: Active,
        shelf: Shelf,
        neighbours: Neighbours,
        announcer: Announcer,
        *,
        say: Say,
    ) -> None:
        """say: makes an announcement of holdings that asks about models."""
        self._engine = engine
        self._active = active
        self._shelf = shelf
        self._neighbours = neighbours
        self._announcer = announcer
        self._say = say
        self._lock = threading.Lock()
        self._held: set[ModelId] = set()  # by others
        self._begun_s = 0.0

    def heard(self, models: tuple[ModelId, ...]) -> None:
        """Another node has these."""
        with self._lock:
            self._held.update(models)

    def run(self, until_s: float, stopped: threading.Event) -> bool:
        """Hand over until monotonic `until_s`; whether all of it could be. Idempotent.

        stopped: set when this is given up, or the node stays after all.
        """
        self._begun_s = monotonic()
        with self._lock:
            self._held.clear()  # what others had at an earlier time may be gone
        for sharing in self._active.all():
            sharing.transfer.pause(paused=True)
        alone = self._still_only_here(self._keepable() if self._neighbours.reachable() else {})
        for model_id, ref in alone.items():
            self._hand(model_id, ref)
        while monotonic() < until_s and not stopped.is_set():
            quiet = self._is_quiet()
            if quiet and not (alone and self._still_only_here(alone)):
                return True
            stopped.wait(min(ASK_S, max(0.0, until_s - monotonic())))
        return False

    def _keepable(self) -> dict[ModelId, str]:
        """Warm models that others could be asked to keep, for they have a ref; ref by model."""
        store = self._engine.store
        refs = store.refs()
        warm = [each for each in store.model_ids() if store.snapshot_path(each) and refs.get(each)]
        warm.sort(key=store.last_used_s, reverse=True)
        return {model_id: refs[model_id][0] for model_id in warm[:MODELS_MAX]}

    def _still_only_here(self, models: dict[ModelId, str]) -> dict[ModelId, str]:
        """Which of them no other node has: all are told that we leave, and asked."""
        self._announcer.tell_all(self._leaving(tuple(models)))
        with self._lock:
            return {each: ref for each, ref in models.items() if each not in self._held}

    def _hand(self, model_id: ModelId, ref: str) -> None:
        by_address = {member.address: member for member in self._neighbours.reachable()}
        for address in first_of(model_id, by_address)[:1]:
            said = replace(self._leaving(()), handed=(ref,))
            self._announcer.tell_one(by_address[address], said)

    def _leaving(self, asked: tuple[ModelId, ...]) -> Announcement:
        holdings = [
            replace(holding, state=HoldingState.LEAVING) for holding in self._active.holdings()
        ]
        return self._say(tuple(holdings), asked)

    def _is_quiet(self) -> bool:
        """Whether nobody has wanted an unfinished blob's chunk in a while."""
        if not self._active.all() or not self._neighbours.fetching():
            return True
        return monotonic() - max(self._shelf.given_s, self._begun_s) > QUIET_S
