"""The use cases over one store: pull, look, verify, pin, remove. What every face calls.

It owns what is asked of a node's store and answers it; how bytes come is `pulling`'s. It must not
know who asks: a command line, an API, or a kubelet.

What fetches is imported when something is fetched: a warm pull is over before that would be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from modelcache.agent.arriving import Arriving
from modelcache.agent.clock import wall_clock_s
from modelcache.agent.memory import MemoryTier, MemoryUse, Told
from modelcache.agent.reaching import Reach
from modelcache.agent.snapshot import Snapshot
from modelcache.config import Settings
from modelcache.domain.differences import Difference, compare
from modelcache.domain.manifests import BlobId, File, Manifest, ModelId
from modelcache.domain.ranges import ChunkGrid
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import CorruptData, NotInStore, StoreReadOnly, UsageError
from modelcache.store import BlobState, LeaseInfo, Store, room
from modelcache.store import repair as repairs
from modelcache.store.room import GarbageReport, Usage
from modelcache.transfer.report import ProgressCallback, Report

if TYPE_CHECKING:
    from modelcache.agent.surroundings import Control, Peers
    from modelcache.transfer.shared import Shared

PARTIAL_KEEP_S: Final = 7 * 86400.0  # an interrupted pull can be resumed for a week


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One line of `ls`. verified: bytes by the checksum that vouched; "none": nothing did."""

    model_id: ModelId
    refs: tuple[str, ...]
    files: int
    size_bytes: int
    present_bytes: int
    warm: bool
    last_used_s: float
    leases: tuple[LeaseInfo, ...]
    verified: dict[str, int]
    path: Path | None
    memory: MemoryUse = field(default_factory=MemoryUse)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One line of `show`."""

    file: File
    present: bool
    verified: str | None


@dataclass(slots=True)
class VerifyResult:
    """What verifying one model found. bad: chunk numbers by file."""

    model_id: ModelId
    files: int = 0
    size_bytes: int = 0
    bad: dict[str, list[int]] = field(default_factory=dict)
    repaired: bool = False
    seconds: float = 0.0


class Engine:
    """See the module. Thread-safe; several may be open on one store, in any processes."""

    def __init__(self, settings: Settings, *, write: bool = True) -> None:
        """Open the store. Raises StoreError; with `write` a store is made where none is."""
        self.settings = settings
        self.reach = Reach(settings)
        self.store = Store.open(settings.store, write=write)
        self.memory = MemoryTier(self.store, settings.memory)
        self.peers: Peers | None = None  # other nodes, where there are any
        self.arriving = Arriving(self.store)  # what is being fetched, for who reads it already
        self._lock = threading.Lock()
        self._shared_by_all: Shared | None = None

    def __enter__(self) -> Self:
        """Nothing is held open; the form is for symmetry with a remote engine."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `__enter__`."""

    # Pull

    def pull(
        self,
        ref: Ref,
        *,
        max_age_s: float | None = None,
        refresh: bool = False,
        progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        control: Control | None = None,
        resolved: Callable[[Manifest], None] | None = None,
        settings: Settings | None = None,
    ) -> Snapshot:
        """Make the model warm and return its snapshot.

        A model resolved less than `max_age_s` ago (default: the settings') and warm is returned
        without asking the origin, unless `refresh`. progress: called about ten times a second, in
        this thread. control: who steers it while it runs. resolved: called, unless the model is
        warm, when it is known what comes and before anything does. settings: for this pull. Raises
        ModelcacheError; Cancelled after `cancel` is set. Whatever happens, finished chunks are kept
        and the next call goes on from there.
        """
        if not self.store.writable:
            raise StoreReadOnly(f"store {self.store.layout.root} was opened for reading")
        if not refresh:
            warm = self._warm(ref, self.settings.max_age_s if max_age_s is None else max_age_s)
            if warm is not None:
                return warm
        from modelcache.agent.pulling import pull_from_any  # noqa: PLC0415 - see the module
        from modelcache.agent.surroundings import Surroundings  # noqa: PLC0415

        around = Surroundings(self.shared(), self.peers, control, self.arriving, resolved)
        chosen = settings or self.settings
        return pull_from_any(chosen, self.store, ref, progress, cancel, around=around)

    def shared(self) -> Shared:
        """What all transfers of this engine share."""
        from modelcache.transfer.shared import Shared  # noqa: PLC0415 - see the module

        with self._lock:
            if self._shared_by_all is None:
                self._shared_by_all = Shared(self.settings.transfer)
            return self._shared_by_all

    def _warm(self, ref: Ref, max_age_s: float) -> Snapshot | None:
        recalled = self.store.recall_ref(ref)
        if recalled is None:
            return None
        model_id, resolved_at_s = recalled
        path = self.store.snapshot_path(model_id)
        if path is None or wall_clock_s() - resolved_at_s > max_age_s:
            return None
        self.store.touch(model_id)
        return Snapshot(path, model_id, ref.redacted(), from_cache=True)

    # Looking

    def models(self) -> list[StoredModel]:
        """Every model on this node, warm or warming."""
        refs = self.store.refs()
        return [self._describe(model_id, refs) for model_id in self.store.model_ids()]

    def show(self, what: str) -> tuple[StoredModel, list[StoredFile]]:
        """One model and its files. Raises NotInStore, CorruptData."""
        model_id = self.store.find(what)
        manifest = self.store.manifest(model_id)
        files = []
        for file in manifest.files:
            present = self.store.has_blob(file.blob, file.size_bytes)
            receipt = self.store.receipt(file.blob) if present else None
            files.append(StoredFile(file, present, receipt.verified if receipt else None))
        return self._describe(model_id, self.store.refs()), files

    def compare(self, first: str, second: str) -> Difference:
        """What having the second model costs whoever has the first; nothing is fetched.

        The first is what the store has of it, if anything. A second that is a ref is resolved anew,
        for it may have moved on. Raises NotInStore for an id, what resolving raises, and
        UsageError for a ref whose files only a pull can tell.
        """
        return compare(self._stored(first) or self._resolved(first), self._second(second))

    def _second(self, what: str) -> Manifest:
        if "://" in what:
            return self._resolved(what)
        return self.store.manifest(self.store.find(what))

    def _stored(self, what: str) -> Manifest | None:
        try:
            return self.store.manifest(self.store.find(what))
        except NotInStore:
            if "://" not in what:
                raise
            return None

    def _resolved(self, what: str) -> Manifest:
        from modelcache.agent.pulling import resolve_from_any  # noqa: PLC0415 - see the module

        ref = parse_ref(what)
        manifest = resolve_from_any(self.settings, ref)
        if manifest.archives:
            raise UsageError(
                f"what {ref.redacted()} holds is known only by unpacking it; pull it, and compare "
                "by model id"
            )
        return manifest

    def path(self, what: str) -> Path:
        """The snapshot of a warm model. Raises NotInStore for a cold or warming one."""
        model_id = self.store.find(what)
        path = self.store.snapshot_path(model_id)
        if path is None:
            raise NotInStore(f"model {model_id[:12]} is not complete yet; pull it again")
        self.store.touch(model_id)
        return path

    def warm_memory(
        self,
        what: str,
        *,
        locked: bool = False,
        told: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> MemoryUse:
        """Bring a warm model into the page cache, or `locked` into a copy on a tmpfs. Idempotent.

        Raises NotInStore, MemoryFull, InvalidConfig, Cancelled, StoreError.
        """
        bring = self.memory.lock if locked else self.memory.warm
        return bring(self.store.find(what), told=told, cancel=cancel)

    def usage(self) -> Usage:
        """What the store takes."""
        return room.usage(self.store)

    def explain(self, what: str) -> Report:
        """Where the time of the model's last pull went. Raises NotInStore."""
        model_id = self.store.find(what)
        report = self.store.report(model_id)
        if report is None:
            raise NotInStore(
                f"no report is kept of model {model_id[:12]}; it was never fetched here"
            )
        return Report.from_json(report)

    def _describe(self, model_id: ModelId, refs: dict[ModelId, list[str]]) -> StoredModel:
        path = self.store.snapshot_path(model_id)
        try:
            manifest = self.store.manifest(model_id)
        except (CorruptData, NotInStore):
            manifest = Manifest("", (), model_id)
        verified: dict[str, int] = {}
        present = size = 0
        for blob, file in manifest.blobs().items():
            size += file.size_bytes
            if not self.store.has_blob(blob, file.size_bytes):
                present += self.store.partial_bytes(blob)
                continue
            present += file.size_bytes
            receipt = self.store.receipt(blob)
            vouched = (receipt.verified if receipt else None) or "none"
            verified[vouched] = verified.get(vouched, 0) + file.size_bytes
        return StoredModel(
            model_id=model_id,
            refs=tuple(refs.get(model_id, ())),
            files=len(manifest.files),
            size_bytes=size,
            present_bytes=present,
            warm=path is not None,
            last_used_s=self.store.last_used_s(model_id),
            leases=tuple(self.store.leases(model_id)),
            verified=verified,
            path=path,
            memory=self.memory.use(manifest),
        )

    # Keeping and removing

    def pin(self, what: str, note: str = "") -> ModelId:
        """Protect a model from eviction until it is unpinned."""
        model_id = self.store.find(what)
        self.store.pin(model_id, note)
        return model_id

    def unpin(self, what: str) -> bool:
        """Remove the pin; False if there was none."""
        return self.store.unpin(self.store.find(what))

    def remove(self, what: str, *, force: bool = False) -> int:
        """Remove a model; returns the bytes freed. Raises Leased unless `force`."""
        model_id = self.store.find(what)
        freed = self.store.remove_model(model_id, force=force)
        self.memory.drop_copy(model_id)
        return freed

    def collect_garbage(self, *, partial_older_than_s: float = PARTIAL_KEEP_S) -> GarbageReport:
        """Remove what nothing needs, and what is over the quota."""
        return room.collect_garbage(
            self.store, now_s=wall_clock_s(), partial_older_than_s=partial_older_than_s
        )

    def would_evict(self, need_bytes: int) -> tuple[list[StoredModel], int, int]:
        """What would go for so many bytes more: models, bytes freed, and bytes that lack still."""
        chosen, freed, lacking = room.would_evict(self.store, need_bytes, now_s=wall_clock_s())
        refs = self.store.refs()
        return [self._describe(model_id, refs) for model_id in chosen], freed, lacking

    def verify(
        self,
        what: str | None = None,
        *,
        repair: bool = True,
        progress: ProgressCallback | None = None,
    ) -> list[VerifyResult]:
        """Hash every blob again; with `repair` fetch the bad chunks, and only those, anew.

        Raises what a pull raises when the origin cannot give the chunks any more; what was found
        good stays.
        """
        chosen = [self.store.find(what)] if what else self.store.model_ids()
        return [self._verify(model_id, repair=repair, progress=progress) for model_id in chosen]

    def _verify(
        self, model_id: ModelId, *, repair: bool, progress: ProgressCallback | None
    ) -> VerifyResult:
        started_s = monotonic()
        manifest = self.store.manifest(model_id)
        result = VerifyResult(model_id, files=len(manifest.files))
        damaged: dict[BlobId, list[int]] = {}
        for blob, file in manifest.blobs().items():
            if not self.store.has_blob(blob, file.size_bytes):
                if self.store.snapshot_path(model_id) is None:
                    continue  # warming: nothing is claimed of it
                bad = list(range(max(1, self._grid(file).count)))
            else:
                bad = repairs.bad_chunks(self.store, blob, file.size_bytes)
                if not bad and self.store.blob_state(blob) is BlobState.CHANGED:
                    self.store.renew_receipt(blob)
            result.size_bytes += file.size_bytes
            if bad:
                damaged[blob] = bad
                result.bad[file.path] = bad
        if damaged and repair:
            from modelcache.agent.repairing import Repair  # noqa: PLC0415 - see the module

            Repair(self.settings, self.store, manifest, damaged, progress).run()
            result.repaired = True
        result.seconds = monotonic() - started_s
        return result

    def _grid(self, file: File) -> ChunkGrid:
        return ChunkGrid(file.size_bytes, self.settings.store.chunk_bytes)
