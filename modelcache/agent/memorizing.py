"""Bringing models into memory while others go on asking: one at a time, each in its turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic
from typing import Final

from modelcache.agent.engine import Engine
from modelcache.agent.memory import MemoryUse
from modelcache.domain.manifests import ModelId
from modelcache.domain.wanted import Trouble
from modelcache.errors import ModelcacheError

Loaded = Callable[[int, float], None]
"""Called with bytes, and the seconds they took."""
MEASURED_BYTES_MIN: Final = 64 << 20  # less says how long it takes to begin
KEPT_MAX: Final = 256  # models whose last attempt is remembered


class MemoryPhase(StrEnum):
    """Where an attempt is."""

    IDLE = "idle"  # none was made since the agent began
    WARMING = "warming"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One moment of it."""

    phase: MemoryPhase = MemoryPhase.IDLE
    locked: bool = False
    done_bytes: int = 0
    total_bytes: int = 0
    trouble: Trouble | None = None


class Memorizing:
    """See the module. Thread-safe."""

    def __init__(self, engine: Engine, loaded: Loaded | None = None) -> None:
        """loaded: told how fast bytes came into memory that were not there before."""
        self._engine = engine
        self._loaded = loaded
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # two at once would only halve each other's disk
        self._attempts: OrderedDict[ModelId, Attempt] = OrderedDict()
        self._cancel = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, what: str, *, locked: bool) -> ModelId:
        """Bring a model into memory, from another thread; idempotent. Raises NotInStore."""
        model_id = self._engine.store.find(what)
        self._engine.path(model_id)
        with self._lock:
            if self._of(model_id).phase is MemoryPhase.WARMING or self._cancel.is_set():
                return model_id
            self._put(model_id, Attempt(MemoryPhase.WARMING, locked))
            thread = threading.Thread(
                target=self._run, args=(model_id, locked), name="modelcache-memory", daemon=True
            )
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()
        return model_id

    def look(self, what: str) -> tuple[ModelId, Attempt, MemoryUse]:
        """How far it is, and what of the model is in memory. Raises NotInStore."""
        model_id = self._engine.store.find(what)
        with self._lock:
            attempt = self._of(model_id)
        return model_id, attempt, self._engine.memory.use(self._engine.store.manifest(model_id))

    def drop(self, what: str) -> int:
        """Out of memory again; returns the bytes. Raises NotInStore."""
        model_id = self._engine.store.find(what)
        with self._turn:
            freed = self._engine.memory.drop(model_id)
        with self._lock:
            self._attempts.pop(model_id, None)
        return freed

    def close(self) -> None:
        """End what is under way. Idempotent."""
        self._cancel.set()
        for thread in self._threads:
            thread.join()

    def _run(self, model_id: ModelId, locked: bool) -> None:
        def told(done_bytes: int, total_bytes: int) -> None:
            with self._lock:
                now = self._of(model_id)
                self._put(model_id, replace(now, done_bytes=done_bytes, total_bytes=total_bytes))

        trouble = None
        try:
            with self._turn:
                missing, began_s = self._not_resident(model_id), monotonic()
                self._engine.warm_memory(model_id, locked=locked, told=told, cancel=self._cancel)
                if self._loaded is not None and missing >= MEASURED_BYTES_MIN:
                    self._loaded(missing, monotonic() - began_s)
        except ModelcacheError as error:
            trouble = Trouble(error.code, error.message)
        phase = MemoryPhase.FAILED if trouble else MemoryPhase.DONE
        with self._lock:
            self._put(model_id, replace(self._of(model_id), phase=phase, trouble=trouble))

    def _not_resident(self, model_id: ModelId) -> int:
        """Bytes that have to come from the disk; 0 where nobody tells. Raises NotInStore."""
        manifest = self._engine.store.manifest(model_id)
        resident = self._engine.memory.use(manifest).resident_bytes
        size = sum(file.size_bytes for file in manifest.blobs().values())
        return 0 if resident is None else size - resident

    def _of(self, model_id: ModelId) -> Attempt:
        return self._attempts.get(model_id, Attempt())

    def _put(self, model_id: ModelId, attempt: Attempt) -> None:
        self._attempts[model_id] = attempt
        self._attempts.move_to_end(model_id)
        while len(self._attempts) > KEPT_MAX:
            self._attempts.popitem(last=False)
