"""Which nodes have a model or fetch it, as they have told in passing or when asked.

For who wants to know what a start would find, whether or not anything of the model is fetched here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from modelcache.domain.holdings import HoldingState
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import NodeId
from modelcache.peers.messages import Announcement

HOLDS_S: Final = 20.0  # what a node had is believed for so long: it may evict it
FETCHES_S: Final = 6.0  # three announcements of a node that fetches
ASK_EVERY_S: Final = 5.0  # about one model
MODELS_MAX: Final = 4096  # four times what one node can want; the longest unheard go first


class Sightings:
    """Thread-safe. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[ModelId, dict[NodeId, tuple[bool, float]]] = OrderedDict()
        self._asked: dict[ModelId, float] = {}
        self._busy: dict[NodeId, float] = {}  # no more than a cell has

    def heard(self, said: Announcement, now_s: float, *, asked: bool) -> None:
        """A node has told what it has, or fetches. asked: it has only answered."""
        fetches = any(holding.state is HoldingState.FETCHING for holding in said.blobs)
        with self._lock:
            if not asked:  # an answer is about what was asked, and not about all that it does
                self._busy.pop(said.node, None)
                if fetches and not said.leaving:
                    self._busy[said.node] = now_s
            if said.leaving:
                for nodes in self._seen.values():
                    nodes.pop(said.node, None)
                return
            if fetches:
                self._note(said.asked_models, said.node, False, now_s)
            self._note(said.models, said.node, True, now_s)

    def who(self, model_id: ModelId, now_s: float) -> dict[NodeId, bool]:
        """Nodes that have all of a model (True) or fetch it (False)."""
        with self._lock:
            known = self._seen.get(model_id, {})
            return {
                node: whole
                for node, (whole, at_s) in sorted(known.items())
                if now_s - at_s <= (HOLDS_S if whole else FETCHES_S)
            }

    def busy(self, now_s: float) -> int:
        """Nodes that fetch something."""
        with self._lock:
            return sum(now_s - at_s <= FETCHES_S for at_s in self._busy.values())

    def to_ask(self, model_id: ModelId, now_s: float) -> bool:
        """Whether it is time to ask about a model; who is told so, asks."""
        with self._lock:
            if now_s - self._asked.get(model_id, float("-inf")) < ASK_EVERY_S:
                return False
            self._asked.pop(model_id, None)
            self._asked[model_id] = now_s
            while len(self._asked) > MODELS_MAX:
                del self._asked[next(iter(self._asked))]
            return True

    def _note(self, models: Sequence[ModelId], node: NodeId, whole: bool, now_s: float) -> None:
        for model_id in models:
            self._seen.setdefault(model_id, {})[node] = (whole, now_s)
            self._seen.move_to_end(model_id)
        while len(self._seen) > MODELS_MAX:
            self._seen.popitem(last=False)
