"""A scaler that begins learns what the one before it had seen.

The checkpoint of a `ModelScale` is read when that is viewed first, in a thread of its own: views
and readings of demand wait for no API server. What it says is added to what was seen here
meanwhile, so that it may come late, twice, or from a scaler that still runs: who begins to lead has
all of them read once more, and has then what the leader before wrote as its last.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import ModelcacheError
from modelcache.faces.logs import Log
from modelcache.faces.scaler.checkpoint import Checkpoint
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import Key, Scale
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.starts import Starts

RETRY_S: Final = 10.0
NOT_RESTORED: Final = "checkpoints have not been read yet"


class Restoring:
    """See the module. Thread-safe."""

    def __init__(
        self,
        store: CheckpointStore,
        demand: Demand,
        starts: Starts,
        outlooks: Outlooks,
        *,
        log: Log | None = None,
    ) -> None:
        self._store = store
        self._demand, self._starts, self._outlooks = demand, starts, outlooks
        self._log = log
        self._scales: Mapping[Key, Scale] = {}
        self._done: dict[Key, str] = {}  # the uid of the scale that was asked for
        self._ages_s: dict[Key, float] = {}
        self._turn = 0
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._tried = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelcache-restoring")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being asked."""
        self._stopped.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    def follow(self, view: View) -> None:
        """Read the checkpoints of what is new in this view; after demand and starts follow it."""
        with self._lock:
            self._scales = view.scales
            for key, uid in list(self._done.items()):
                if key not in view.scales or view.scales[key].uid != uid:
                    del self._done[key]
                    self._ages_s.pop(key, None)
            for key in self._ages_s.keys() - view.scales.keys():
                del self._ages_s[key]
            nothing = len(self._done) == len(view.scales)
        if nothing:
            self._tried.set()
        else:
            self._news.set()

    def again(self) -> None:
        """Read all of them once more."""
        with self._lock:
            self._done = {}
            self._turn += 1
        self._news.set()

    @property
    def tried(self) -> bool:
        """Whether the API server has been asked once for all that was viewed first."""
        return self._tried.is_set()

    def read(self, scale: Scale) -> bool:
        """Whether its checkpoint has been read, if there is one; until then none may be written."""
        with self._lock:
            return self._done.get(scale.key) == scale.uid

    def ages_s(self) -> dict[Key, float]:
        """How old checkpoints were when they were loaded, for as long nobody may have looked."""
        with self._lock:
            return dict(self._ages_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._news.wait()
            self._news.clear()
            with self._lock:
                turn = self._turn
                missing = {
                    key: scale
                    for key, scale in self._scales.items()
                    if self._done.get(key) != scale.uid
                }
            if missing and not self._stopped.is_set():
                self._read(missing, turn)

    def _read(self, missing: Mapping[Key, Scale], turn: int) -> None:
        loaded = 0
        try:
            for key, found in self._store.read(missing):
                if self._stopped.is_set():
                    return
                loaded += self._adopted(missing[key], found)
        except ModelcacheError:  # told by the store, where time will not heal it
            self._tried.set()
            self._stopped.wait(RETRY_S)
            self._news.set()
            return
        with self._lock:
            if turn == self._turn:
                self._done |= {key: scale.uid for key, scale in missing.items()}
        self._tried.set()
        if loaded and self._log is not None:
            self._log.info("checkpoints_loaded", count=loaded)

    def _adopted(self, scale: Scale, found: Checkpoint) -> bool:
        """Whether any of it holds."""
        if found.scale_uid != scale.uid:
            return False  # of one that had the same name; it is about to be collected
        samples = self._demand.adopt(scale.key, found.demand_source, found.samples)
        same = self._starts.adopt(scale.key, found.server, found.starts)
        self._outlooks.forget(scale.key)
        if not samples and not same:
            return False
        self._store.count("loaded")
        with self._lock:
            self._ages_s.setdefault(scale.key, max(0.0, wall_clock_s() - found.written_s))
        return True
