"""The agent as one thing: a node, its engine, and its peers where it has any; begun and ended.

It knows in which order they begin and end, and whether the whole is ready. Faces ask it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, Protocol

from modelcache.agent.access import Access
from modelcache.agent.borrowing import Borrowing
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.contents import Contents
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.identities import Identities
from modelcache.agent.memorizing import Memorizing
from modelcache.agent.node import Node
from modelcache.agent.volumes import Volumes
from modelcache.config import Settings
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import NodeId, Priority
from modelcache.domain.refs import parse_ref
from modelcache.errors import Draining, ModelcacheError
from modelcache.store.room import Usage

HANDED: Final = "handed-over"  # lease of models that another node was about to lose
HANDED_KEEP_S: Final = 3600.0  # then they are like any other that nobody asks for
USAGE_KEPT_S: Final = 10.0  # counting a store of many thousands of blobs takes a while


class Neighbourhood(Protocol):
    """The node's peers, as the daemon begins, asks and ends them."""

    def start(self) -> None:
        """Listen and announce. Raises StoreError, InvalidConfig."""
        ...

    on_handed: Callable[[str], None] | None
    """Called with the ref of a model that another node cannot keep."""
    on_quarantine: Callable[[NodeId, bool], None] | None
    """Called with a node that is left alone for a while, and whether it gave wrong bytes."""

    on_namesake: Callable[[str], None] | None
    """Called with a line to tell people when another node is found to have this one's name."""

    def warnings(self) -> list[str]:
        """What is wrong with the nodes' settings, a line each that says what to do."""
        ...

    def refuse(self) -> None:
        """Tell others, whenever there is something to tell, that this node leaves. Idempotent."""
        ...

    def hand_over(self, wait_s: float) -> bool:
        """After `refuse`: let others have what only this node has, while pulls last.

        Whether that is done; it is given up when the node stays after all.
        """
        ...

    def drain(self) -> None:
        """After `refuse`: have others take nothing new from here, and finish what is being sent.

        Nothing, when the node stays after all. Idempotent.
        """
        ...

    def resume(self) -> None:
        """Stay after all: tell the others, and give and fetch as before. Idempotent."""
        ...

    def close(self) -> None:
        """Say good-bye and stop. Idempotent."""
        ...

    def peers(self) -> list[dict[str, Any]]:
        """One row for each other node: `node`, `address` and what else is known."""
        ...

    def who_has(self, model_id: ModelId, *, ask: bool = True) -> Mapping[NodeId, bool]:
        """Nodes that have all of a model (True) or fetch it (False). ask: for at most a second."""
        ...

    def names(self) -> list[NodeId]:
        """Every other node that answers."""
        ...

    def busy(self) -> int:
        """How many other nodes fetch something."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Numbers for metrics, by name with unit, such as `served_bytes`: sums since the start."""
        ...


class Daemon:
    """See the module. Thread-safe."""

    def __init__(
        self, settings: Settings, engine: Engine, *, name: str, neighbours: Neighbourhood | None
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.node = Node(settings, engine, name=name)
        self._borrowing = Borrowing(settings, self.node.reach)
        self.identities = Identities(settings.access)
        self.volumes = Volumes(
            self.node,
            engine,
            settings.agent.volume_roots,
            Access(settings, self.node.reach),
            self._borrowing,
            identities=self.identities,
        )
        self.memorizing = Memorizing(engine, self.node.measuring.loaded)
        self.contents = Contents(engine)
        self.neighbours = neighbours
        self.started_at_s = wall_clock_s()
        self._listening = neighbours is None
        self._turning = threading.Lock()  # between staying and leaving
        self._ending = False
        self._counting = threading.Lock()
        self._usage: tuple[float, Usage] | None = None

    def start(self) -> None:
        """Peers first, so that the first pull knows of them. Raises StoreError, InvalidConfig."""
        if self.neighbours is not None:
            self.neighbours.on_handed = self._keep
            self.neighbours.on_quarantine = self._quarantined
            self.neighbours.on_namesake = self._name_taken
            self.neighbours.start()
            self._listening = True
            self.node.foresight.join(self.neighbours)
        self.volumes.start()
        self.node.start()
        self.volumes.release_stale()

    def not_ready(self) -> list[str]:
        """Why it is not ready; empty when it is."""
        reasons = []
        if not self._listening:
            reasons.append("the peer plane does not listen yet")
        if not self.node.loaded:
            reasons.append("what was wanted before the restart was not looked at yet")
        if self.node.draining:
            reasons.append("draining")
        return reasons

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing new, stop pulls, let peers have what they are being sent.

        timeout_s: for all of it; None for the settings'. True when everything was over in time,
        and nobody has resumed meanwhile. Idempotent.
        """
        until_s = monotonic() + (self.settings.agent.shutdown_s if timeout_s is None else timeout_s)
        with self._turning:
            self.node.refuse()  # nothing new comes while others take over what is here
            if self.neighbours is not None and self._listening:
                self.neighbours.refuse()
        if self.neighbours is not None and self._listening:
            self.neighbours.hand_over(max(0.0, until_s - monotonic()) / 2)
        stopped = self.node.stop_pulls(max(0.0, until_s - monotonic()))
        sent = True
        if self.neighbours is not None and self._listening:
            # In a thread of its own: a peer that takes its time must not keep the agent.
            sending = threading.Thread(
                target=self.neighbours.drain, name="modelcache-drain", daemon=True
            )
            sending.start()
            sending.join(max(0.0, until_s - monotonic()))
            sent = not sending.is_alive()
        return stopped and sent and self.node.draining

    def resume(self) -> bool:
        """Take back a drain, over or under way, and go on with what is wanted.

        False if there was none. Raises Draining when the agent itself is about to end.
        """
        with self._turning:
            if self._ending:
                raise Draining(f"the agent of node {self.node.name} is about to end")
            if not self.node.draining:
                return False
            self.node.resume()
            if self.neighbours is not None and self._listening:
                self.neighbours.resume()
            return True

    def leave(self) -> None:
        """The process is about to end: take nothing new, whatever anybody asks. Idempotent."""
        with self._turning:
            self._ending = True
            self.node.refuse()

    def close(self) -> None:
        """End everything; what is wanted stays written down. Idempotent."""
        self.memorizing.close()
        self.contents.close()
        self._borrowing.close()
        self.volumes.close()
        self.node.close()
        if self.neighbours is not None and self._listening:
            self.neighbours.close()

    def _keep(self, ref: str) -> None:
        """Take over a model that another node is about to lose, if it fits without eviction."""
        try:
            self.node.want(
                parse_ref(ref), priority=Priority.SPECULATIVE, lease=HANDED, ttl_s=HANDED_KEEP_S
            )
        except ModelcacheError:
            return  # no room, no ref, or about to leave too: the other node has its origin

    def _quarantined(self, peer: NodeId, lied: bool) -> None:
        self.node.events.add(EventKind.PEER_QUARANTINED, peer=peer, lied=lied)

    def _name_taken(self, message: str) -> None:
        self.node.events.add(EventKind.NAME_TAKEN, message=message)

    def warnings(self) -> list[str]:
        """What somebody should change, a line each; it works meanwhile, and not as it should."""
        return self.neighbours.warnings() if self.neighbours is not None else []

    def usage(self) -> Usage:
        """What the store takes, as counted within the last moments."""
        with self._counting:
            known = self._usage
            if known is None or monotonic() - known[0] > USAGE_KEPT_S:
                known = self._usage = (monotonic(), self.engine.usage())
            return known[1]
