"""What a start on this node would need: what is missing, what comes first, who could give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from modelcache.agent.board import Board
from modelcache.agent.engine import Engine
from modelcache.agent.foresight.knowledge import Knowledge
from modelcache.agent.progressing import Wanted
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import NodeId
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import ModelPhase, wanted_id
from modelcache.errors import CorruptData, NotInStore, StoreError
from modelcache.forecast.estimate import Needs, Queued, ahead_of


class Around(Protocol):
    """The other nodes of the cell, as far as starts depend on them."""

    def who_has(self, model_id: ModelId, *, ask: bool = True) -> Mapping[NodeId, bool]:
        """Nodes that have all of a model (True) or fetch it (False), as far as they have told.

        ask: they may be asked, for at most a second.
        """
        ...

    def names(self) -> list[NodeId]:
        """Every node that answers."""
        ...

    def busy(self) -> int:
        """How many fetch something, whatever it is."""
        ...


class Survey:
    """See the module. Thread-safe."""

    def __init__(
        self, board: Board, engine: Engine, knowledge: Knowledge, *, pulls_max: int
    ) -> None:
        """around: the other nodes, where there are any."""
        self.around: Around | None = None
        self._board = board
        self._engine = engine
        self._knowledge = knowledge
        self._pulls_max = pulls_max

    def seen(self, ref: Ref) -> tuple[ModelId, Needs]:
        """As `known`. Raises NotInStore where nobody knows."""
        known = self.known(ref)
        if known is None:
            raise NotInStore(
                f"{ref.redacted()} was never resolved on this node; ask for it with prefetch, or "
                "ask a node that has had it"
            )
        return known

    def at_hand(self, wanted: Wanted) -> tuple[ModelId, Needs] | None:
        """What is known without looking: of what is warm, or on its way."""
        with self._board.changed:
            model_id, progress = wanted.desired.model_id, wanted.progress
            if not model_id:
                return None
            if wanted.phase is ModelPhase.WARM:
                return model_id, Needs(wanted.size_bytes, 0, resolved=True)
            if progress is None or not progress.total_bytes:
                return None
            left = max(1, progress.total_bytes - progress.done_bytes)
        holders, fetchers = self._counted(model_id, ask=False)
        total = progress.total_bytes
        needs = Needs(total, left, holders=holders, fetchers=fetchers, resolved=True)
        return model_id, replace(needs, busy=self._busy())

    def known(
        self, ref: Ref, *, resolved: bool = False, ask: bool = True
    ) -> tuple[ModelId, Needs] | None:
        """What a ref means, and what of it is not here. None where nobody knows."""
        name = wanted_id(ref)
        sized = self._knowledge.size(name)
        recalled = self._engine.store.recall_ref(ref)
        model_id = ModelId(sized[0]) if sized is not None else recalled and recalled[0]
        if not model_id:
            return None
        stored = self._stored(model_id)
        if stored is not None:
            size, missing = stored
        elif sized is not None:
            size = missing = sized[1]
        else:
            return None
        missing = self._under_way(name, missing)
        holders, fetchers = self._counted(model_id, ask=ask)
        needs = Needs(size, missing, holders=holders, fetchers=fetchers, resolved=resolved)
        return model_id, replace(needs, busy=self._busy())

    def _stored(self, model_id: ModelId) -> tuple[int, int] | None:
        """Bytes of a model, and those that are not in the store; None if it is not known there."""
        store = self._engine.store
        try:
            blobs = store.manifest(model_id).blobs()
        except (NotInStore, CorruptData, StoreError):
            return None
        size = sum(file.size_bytes for file in blobs.values())
        if store.snapshot_path(model_id) is not None:
            return size, 0
        missing = sum(
            file.size_bytes - store.partial_bytes(blob)
            for blob, file in blobs.items()
            if not store.has_blob(blob, file.size_bytes)
        )
        return size, max(1, missing)  # something is to be done before it can be shown

    def _under_way(self, name: str, missing: int) -> int:
        """Chunks that are just arriving count, too."""
        with self._board.changed:
            wanted = self._board.wanted.get(name)
            progress = wanted.progress if wanted is not None else None
            if progress is None or not progress.total_bytes:
                return missing
            return min(missing, max(0, progress.total_bytes - progress.done_bytes))

    def queued(self, needs: Needs, name: str, priority: int) -> Needs:
        """With what is fetched here before it."""
        others = []
        with self._board.changed:
            for other, wanted in self._board.wanted.items():
                if other == name or wanted.phase in {ModelPhase.WARM, ModelPhase.FAILED}:
                    continue
                progress = wanted.progress
                if progress is not None and progress.total_bytes:
                    left = progress.total_bytes - progress.done_bytes
                else:
                    sized = self._knowledge.size(other)
                    left = sized[1] if sized is not None else 0
                others.append(Queued(left, wanted.desired.priority))
        ahead = ahead_of(needs.missing_bytes, priority, others, at_once=self._pulls_max)
        return replace(needs, ahead_bytes=ahead)

    def who_has(self, model_id: ModelId, *, ask: bool = True) -> Mapping[NodeId, bool]:
        """As Around; nobody where there is nobody around."""
        return self.around.who_has(model_id, ask=ask) if self.around is not None else {}

    def _counted(self, model_id: ModelId, *, ask: bool) -> tuple[int, int]:
        """How many others have all of a model, and how many fetch it."""
        has = self.who_has(model_id, ask=ask)
        holders = sum(has.values())
        return holders, len(has) - holders

    def _busy(self) -> int:
        return self.around.busy() if self.around is not None else 0
