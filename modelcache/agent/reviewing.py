"""Looking after what is warm: that it is still there, and whether its ref means the same still."""

from __future__ import annotations

from time import monotonic
from typing import Final

from modelcache.agent.attempting import Attempting, measure
from modelcache.agent.board import Board
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.desired import UNKNOWN
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.progressing import Wanted
from modelcache.domain.manifests import ModelId
from modelcache.domain.wanted import ModelPhase
from modelcache.transfer.report import Report

REVIEW_EVERY_S: Final = 15.0  # a few stats for each model


class Review:
    """See the module. Its methods are called from the node's own thread."""

    def __init__(
        self, board: Board, engine: Engine, attempting: Attempting, *, refresh_s: float
    ) -> None:
        """refresh_s: how often refs are resolved anew; 0 for never."""
        self._board = board
        self._engine = engine
        self._attempting = attempting
        self._refresh_s = refresh_s
        self._due_s = monotonic() + REVIEW_EVERY_S
        self._known: set[ModelId] = set()

    def take_up(self, wanted: Wanted) -> None:
        """Hold what there is of a model that was wanted before, and see whether it is warm.

        Raises StoreError.
        """
        store = self._engine.store
        recalled = store.recall_ref(wanted.desired.ref)
        model_id = wanted.desired.model_id
        if model_id == UNKNOWN:
            if recalled is None:
                return
            model_id = recalled[0]
        if not self._attempting.hold(wanted, model_id):
            return
        path = store.snapshot_path(model_id)
        # What a ref has come to mean is noted last: without that the pull was not over.
        if path is None or recalled is None or recalled[0] != model_id:
            return
        size_bytes, files = measure(store, model_id)
        report = store.report(model_id)
        sources = Report.from_json(report).sources if report else {}
        with self._board.changed:
            wanted.path = str(path)
            wanted.size_bytes, wanted.files = size_bytes, files
            wanted.sources = {name: each.received_bytes for name, each in sources.items()}
            wanted.warm_s = monotonic()
            wanted.settle_warm()

    def look(self) -> None:
        """Find what is gone, and what is to be resolved anew. Raises StoreError."""
        now_s = monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + REVIEW_EVERY_S
        self._note_evicted()
        with self._board.changed:
            warm = [
                wanted
                for wanted in self._board.wanted.values()
                if wanted.phase is ModelPhase.WARM and wanted.attempt is None
            ]
        for wanted in warm:
            if self._engine.store.snapshot_path(wanted.desired.model_id) is None:
                self._begin_again(wanted)
            elif self._refresh_s and now_s - wanted.warm_s >= self._refresh_s:
                with self._board.changed:
                    wanted.refresh = True
                    wanted.due_s = now_s if wanted.due_s is None else wanted.due_s

    def _begin_again(self, wanted: Wanted) -> None:
        """Somebody has removed by force what is wanted here."""
        self._attempting.let_go(wanted)
        with self._board.changed:
            wanted.path = ""
            wanted.began_s = wall_clock_s()
            wanted.phase = ModelPhase.QUEUED
            wanted.due_s = monotonic()

    def _note_evicted(self) -> None:
        present = set(self._engine.store.model_ids())
        for model_id in sorted(self._known - present):
            self._board.events.add(EventKind.EVICTED, model_id=model_id)
        self._known = present
