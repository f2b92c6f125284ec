"""Checkpoints are written by whoever leads, every few minutes and before it leaves.

When each is due follows from its object's uid, so that a thousand do not come in one second. One
that says what the last one said is not written, nor one whose predecessor has not been read: a
scaler that knows nothing yet must not have that outlast what another knew.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Final
from zlib import crc32

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import ModelcacheError, SourceRefused
from modelcache.faces.scaler.checkpoint import Checkpoint
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.cluster import View
from modelcache.faces.scaler.declared import Key, Scale
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.restoring import Restoring
from modelcache.faces.scaler.starts import Starts

EVERY_S: Final = 300.0
EVERY_BOUNDS_S: Final = (5.0, 3600.0)  # an hour is all that a history has
ROUND_MAX: Final = 20
"""Writes in one round of a second: 5,000 objects in five minutes are 17."""
RETRY_S: Final = 30.0  # where the API server did not answer
LEAVING_S: Final = 10.0
"""For all of them at the end, of the 30 s that a pod usually has; 5 have gone with lingering."""
LEAVING_WRITERS: Final = 8
SAME_S: Final = 0.5
"""Between two tellings of one time: Unix times of one sample differ by what clocks are set by."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What tells whether a checkpoint says more than another, without keeping either."""

    about: tuple[object, ...]
    newest_s: float

    def as_much_as(self, other: _Said) -> bool:
        return self.about == other.about and abs(self.newest_s - other.newest_s) < SAME_S


class Recording:
    """See the module. Thread-safe."""

    def __init__(
        self,
        store: CheckpointStore,
        restoring: Restoring,
        demand: Demand,
        starts: Starts,
        *,
        every_s: float,
    ) -> None:
        """every_s: within EVERY_BOUNDS_S."""
        self._store, self._restoring = store, restoring
        self._demand, self._starts = demand, starts
        self._every_s = every_s
        self._due_s: dict[Key, float] = {}
        self._written: dict[Key, _Said] = {}
        self._leads = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Lead from now on, with all that who led before has written."""
        self._restoring.again()
        with self._lock:
            self._leads = True
            self._due_s, self._written = {}, {}

    def end(self) -> None:
        """Lead no more: another may write by now."""
        with self._lock:
            self._leads = False

    def look(self, view: View) -> None:
        """Write some of those that are due."""
        now_s = monotonic()
        with self._lock:
            self._due_s = {
                key: self._due_s[key] if key in self._due_s else now_s + self._first_s(scale)
                for key, scale in view.scales.items()
            }
            self._written = {key: it for key, it in self._written.items() if key in view.scales}
            due = sorted((at_s, key) for key, at_s in self._due_s.items() if at_s <= now_s)
        for _, key in due[:ROUND_MAX]:
            if not self._write(view.scales[key]):
                return

    def leave(self, view: View) -> None:
        """Write all that has changed, those first that were written longest ago, in LEAVING_S."""
        with self._lock:
            if not self._leads:
                return
            order = sorted(view.scales, key=lambda key: self._due_s.get(key, 0.0))
        until_s = monotonic() + LEAVING_S
        scales = iter([view.scales[key] for key in order])
        taking = threading.Lock()

        def work() -> None:
            while monotonic() < until_s:
                with taking:
                    scale = next(scales, None)
                if scale is None or not self._write(scale):
                    return

        with ThreadPoolExecutor(LEAVING_WRITERS, thread_name_prefix="modelcache-leaving") as pool:
            for each in [pool.submit(work) for _ in range(LEAVING_WRITERS)]:
                each.result()

    def _write(self, scale: Scale) -> bool:
        """Whether to go on with others: not where nobody answers, or another may lead."""
        if not self._restoring.read(scale):
            return True  # it stays due
        found = self._checkpoint(scale)
        says = _said(found)
        with self._lock:
            if not self._leads:
                return False
            before = self._written.get(scale.key)
        wait_s, goes_on = self._every_s, True
        if not (found.empty if before is None else says.as_much_as(before)):
            try:
                self._store.write(scale.key, found)
            except SourceRefused:
                pass  # told by the store; later it may be granted
            except ModelcacheError:
                wait_s, goes_on = min(RETRY_S, self._every_s), False
            else:
                with self._lock:
                    self._written[scale.key] = says
        with self._lock:
            self._due_s[scale.key] = monotonic() + wait_s
        return goes_on

    def _first_s(self, scale: Scale) -> float:
        """After how long it comes first; every `every_s` from then on."""
        return self._every_s * crc32(scale.uid.encode()) / 2**32

    def _checkpoint(self, scale: Scale) -> Checkpoint:
        source, samples = self._demand.kept(scale.key)
        server, starts = self._starts.kept(scale.key)
        return Checkpoint(
            scale_uid=scale.uid,
            written_s=wall_clock_s(),
            demand_source=source,
            server=server,
            samples=samples,
            starts=starts,
        )


def _said(found: Checkpoint) -> _Said:
    starts = found.starts
    return _Said(
        (
            *(found.scale_uid, found.demand_source, found.server, len(found.samples)),
            *(len(starts.warm), starts.warm[-1:], len(starts.cold), starts.cold[-1:]),
            *(starts.abandoned, frozenset(starts.under_way.items())),
        ),
        found.samples[-1].at_s if found.samples else 0.0,
    )
