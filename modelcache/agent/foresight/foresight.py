"""Predicts starts of this node, and holds itself to it: the moments, and the questions.

A start begins when a model is wanted that is not warm; if nobody knows yet what its ref means, when
that is known. What is predicted then is frozen, and compared with the truth when the model is warm.
The node tells of these moments in passing: the work, which may ask other nodes and writes a file,
is done by one thread, in the order in which things happened.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelcache.agent.board import Board
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.desired import DesiredModel
from modelcache.agent.engine import Engine
from modelcache.agent.events import EventKind
from modelcache.agent.foresight.knowledge import Knowledge
from modelcache.agent.foresight.records import Prediction
from modelcache.agent.foresight.survey import Around, Survey
from modelcache.agent.measuring import origin_of
from modelcache.config import ForecastSettings
from modelcache.domain.manifests import ModelId
from modelcache.domain.members import Priority
from modelcache.domain.refs import Ref
from modelcache.domain.wanted import wanted_id
from modelcache.errors import StoreError
from modelcache.forecast.estimate import Needs, Speeds, Tier
from modelcache.transfer.report import Report

TASKS_MAX: Final = 4096  # four for each model that can be wanted; what comes on top is not scored
ID_DIGITS: Final = 12
NEW_NODE: Final = "new"


@dataclass(frozen=True, slots=True)
class Outlook:
    """One model on one node. prediction: None where nobody knows how fast its bytes would come."""

    node: str
    model_id: ModelId
    needs: Needs
    prediction: Prediction | None


class Foresight:
    """See the module. Thread-safe."""

    def __init__(
        self,
        board: Board,
        engine: Engine,
        settings: ForecastSettings,
        *,
        name: str,
        pulls_max: int,
    ) -> None:
        """name: of this node. Nothing is begun before `start`."""
        self._name = name
        declared = Speeds(
            origin_bytes_s=settings.origin_bytes_s or None,
            peer_bytes_s=settings.peer_bytes_s or None,
            load_bytes_s=settings.load_bytes_s or None,
        )
        self.knowledge = Knowledge(engine.store.layout.forecast, board.measuring, declared)
        self._board = board
        self._engine = engine
        self._survey = Survey(board, engine, self.knowledge, pulls_max=pulls_max)
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(TASKS_MAX)
        self._thread: threading.Thread | None = None

    def join(self, around: Around) -> None:
        """There are other nodes, which can be asked."""
        self._survey.around = around

    def start(self) -> None:
        """Take up what was known before the restart, and begin; after what is wanted is known."""
        with self._board.changed:
            wanted = list(self._board.wanted)
        self.knowledge.load(wanted, wall_clock_s())
        self._thread = threading.Thread(target=self._run, name="modelcache-foresight", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish what has been told, and end. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._tasks.put(None)
        thread.join()
        self._guarded(self.knowledge.save)

    # What happens on the node. Quick, and called from any thread.

    def wants(self, desired: DesiredModel) -> None:
        """A model is wanted, and not warm."""
        began_s = wall_clock_s()
        self._later(lambda: self._begin(desired.ref, began_s))

    def resolved(self, ref: Ref, model_id: ModelId, total_bytes: int) -> None:
        """It is known what a model that is being fetched consists of; nothing has come yet."""
        began_s = wall_clock_s()

        def freeze() -> None:
            self.knowledge.sized(wanted_id(ref), model_id, total_bytes)
            self._begin(ref, began_s, resolved=True)

        self._later(freeze)

    def warm(self, ref: Ref, model_id: ModelId, began_s: float, report: Report | None) -> None:
        """A model is warm. began_s: when it came to be wanted, seconds since the epoch."""
        now_s = wall_clock_s()

        def learn() -> None:
            name, fetched = wanted_id(ref), report is not None and report.fetched_bytes > 0
            opened = self.knowledge.end(name, now_s, finished=True)
            tier = opened.promise.tier if opened is not None else _tier_of(report)
            self.knowledge.took(model_id[:ID_DIGITS], tier, max(0.0, now_s - began_s))
            if opened is not None and report is not None and fetched:
                self.knowledge.fetched(
                    opened,
                    origin_of(ref.redacted()),
                    resolving_s=report.resolving_s,
                    wall_s=report.wall_s,
                )
            self._guarded(self.knowledge.save)

        self._later(learn)

    def gave_up(self, name: str) -> None:
        """Nobody wants a model any more. name: its wanted id."""
        now_s = wall_clock_s()

        def learn() -> None:
            if self.knowledge.end(name, now_s, finished=False) is not None:
                self._guarded(self.knowledge.save)

        self._later(learn)

    # Questions

    def here(self, ref: Ref, *, priority: int | None = None, stream: bool = False) -> Outlook:
        """When a model would be ready on this node.

        priority: of who asks; the model's own without, or that of a pod that waits. stream: it is
        read while it comes. Raises NotInStore for a model that was never seen here.
        """
        name = wanted_id(ref)
        with self._board.changed:
            wanted = self._board.wanted.get(name)
        known = self._survey.at_hand(wanted) if wanted is not None else None
        model_id, needs = known or self._survey.seen(ref)
        if priority is None:
            priority = wanted.desired.priority if wanted is not None else Priority.MOUNTED
        needs = self._survey.queued(needs, name, priority)
        return self._outlook(self._name, ref, model_id, needs, stream=stream)

    def wanted(self, name: str) -> Prediction | None:
        """As `here`, for a model that is wanted, by its id; None where nobody can say.

        For who asks about all of them every few seconds: no other node is asked for it, and the
        store is looked at only for a model that waits for its turn.
        """
        with self._board.changed:
            wanted = self._board.wanted.get(name)
        if wanted is None:
            return None
        ref, priority = wanted.desired.ref, wanted.desired.priority
        known = self._survey.at_hand(wanted) or self._survey.known(ref, ask=False)
        if known is None:
            return None
        model_id, needs = known
        queued = self._survey.queued(needs, name, priority)
        return self._outlook(self._name, ref, model_id, queued).prediction

    def elsewhere(self, ref: Ref, *, stream: bool = False) -> list[Outlook]:
        """The same on every other node of the cell that answers, and last on a new one (NEW_NODE).

        As far as this node knows: the speeds are its own, and what others queue is their matter.
        Raises NotInStore.
        """
        model_id, needs = self._survey.seen(ref)
        has = self._survey.who_has(model_id)
        holders = sum(has.values()) + (needs.missing_bytes <= 0)
        size = needs.size_bytes
        found = []
        around = self._survey.around
        for node in around.names() if around is not None else ():
            whole = has.get(node, False)
            there = Needs(
                size,
                0 if whole else size,
                holders=holders - whole,
                fetchers=max(0, needs.fetchers - (node in has and not whole)),
                busy=needs.busy,
            )
            found.append(self._outlook(node, ref, model_id, there, stream=stream))
        alone = Needs(size, size, holders=holders, fetchers=needs.fetchers, busy=needs.busy)
        return [*found, self._outlook(NEW_NODE, ref, model_id, alone, stream=stream)]

    def everywhere(
        self, ref: Ref, *, priority: int | None = None, stream: bool = False
    ) -> list[Outlook]:
        """Here first, then as `elsewhere`. Raises NotInStore."""
        here = self.here(ref, priority=priority, stream=stream)
        return [here, *self.elsewhere(ref, stream=stream)]

    # Parts

    def _outlook(
        self, node: str, ref: Ref, model_id: ModelId, needs: Needs, *, stream: bool = False
    ) -> Outlook:
        prediction = self.knowledge.predict(
            model_id[:ID_DIGITS],
            needs,
            origin_of(ref.redacted()),
            chunk_bytes=self._engine.settings.store.chunk_bytes if stream else None,
        )
        return Outlook(node, model_id, needs, prediction)

    def _begin(self, ref: Ref, began_s: float, *, resolved: bool = False) -> None:
        """Freeze what is predicted now, if it can be; else the next moment may know more."""
        name = wanted_id(ref)
        with self._board.changed:
            wanted = self._board.wanted.get(name)
            if wanted is None or not wanted.desired.wants or self.knowledge.is_open(name):
                return
            priority = wanted.desired.priority
        known = self._survey.known(ref, resolved=resolved)
        if known is None:
            return
        model_id, needs = known
        needs = self._survey.queued(needs, name, priority)
        prediction = self._outlook(self._name, ref, model_id, needs).prediction
        if prediction is not None:
            self.knowledge.freeze(name, model_id[:ID_DIGITS], prediction, began_s)
            self._guarded(self.knowledge.save)

    def _later(self, task: Callable[[], None]) -> None:
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            return  # a start that is not scored; the node has better to do than to wait

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._guarded(task)

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except StoreError as error:
            self._board.events.add(EventKind.STORE_TROUBLE, message=error.message)
        except Exception as error:  # noqa: BLE001 - the supervisor: a bug costs one start's score
            self._board.events.add(
                EventKind.STORE_TROUBLE,
                message=f"this is a bug: a start is not scored: {type(error).__name__}: {error}",
            )


def _tier_of(report: Report | None) -> Tier:
    """Of a start that nobody predicted."""
    if report is None or not report.fetched_bytes:
        return Tier.WARM
    return Tier.WARMING if report.present_bytes else Tier.COLD
