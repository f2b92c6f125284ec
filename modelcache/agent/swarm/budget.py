"""How much of an origin is this node's, when all nodes of a cell ask it at once.

A hundred nodes behind one address are one client to a hub: what one of them may do, all of them
together may do. The limits are of the cell; each node takes its part of them, by how many are
fetching now. A node that is told to wait (429) tells the others, and all wait.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic
from typing import Final

from modelcache.agent.engine import Engine
from modelcache.agent.swarm.active import Active
from modelcache.config import SwarmSettings
from modelcache.transfer.shared import REQUEST_UNITS

PAUSE_MAX_S: Final = 120.0  # longer than that nobody is believed
NEWS_S: Final = 0.5  # a pause that is longer than a known one by less is the same one
ORIGINS_MAX: Final = 64


class Budget:
    """See the module. Thread-safe."""

    def __init__(self, settings: SwarmSettings, active: Active, engine: Engine) -> None:
        self._settings = settings
        self._active = active
        self._engine = engine
        self._lock = threading.Lock()
        self._nodes = 1
        self._until_s: dict[str, float] = {}  # by origin, monotonic

    def apply(self, nodes: int) -> None:
        """Take this node's part, of so many that are fetching."""
        self._nodes = max(1, nodes)
        settings = self._settings
        shared = self._engine.shared()
        if settings.origin_bytes_s:
            shared.cluster_pacer.limit(max(1, settings.origin_bytes_s // self._nodes))
        if settings.origin_requests_s:
            shared.request_pacer.limit(
                max(1, REQUEST_UNITS * settings.origin_requests_s // self._nodes)
            )
        self._cap()

    def throttled(self, origin: str, retry_after_s: float) -> None:
        """An origin has asked this node for less."""
        self._rest(origin, retry_after_s)

    def heard(self, throttled: Mapping[str, float]) -> None:
        """Other nodes were asked for less: seconds left, by origin."""
        for origin, left_s in throttled.items():
            self._rest(origin, left_s)

    def told(self) -> dict[str, float]:
        """What to tell others: seconds left, by origin."""
        now_s = monotonic()
        with self._lock:
            self._until_s = {name: at for name, at in self._until_s.items() if at > now_s}
            return {name: round(at - now_s, 3) for name, at in self._until_s.items()}

    def _rest(self, origin: str, seconds: float) -> None:
        until_s = monotonic() + min(max(seconds, 0.0), PAUSE_MAX_S)
        with self._lock:
            known = self._until_s.get(origin, 0.0)
            if until_s <= known + NEWS_S:  # what this node has said comes back from others
                return
            if origin not in self._until_s and len(self._until_s) >= ORIGINS_MAX:
                return
            self._until_s[origin] = until_s
        self._cap()

    def _cap(self) -> None:
        """Tell every transfer what holds for its origin."""
        most = self._settings.origin_connections
        connections = max(1, most // self._nodes) if most else None
        for sharing in self._active.all():
            with self._lock:
                until_s = self._until_s.get(sharing.origin, 0.0)
            sharing.transfer.cap_origins(connections, until_s)
