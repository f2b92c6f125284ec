"""Bringing a set of blobs into the store, together with whoever else is bringing them.

What a pull and a repair share: jobs, writers, progress, and waiting for other processes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import ClassVar, Final

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.surroundings import Surroundings
from modelcache.config import BLOCK_BYTES, Settings
from modelcache.domain.manifests import Assembly, BlobId, File, Manifest
from modelcache.domain.places import Scheme
from modelcache.domain.ranges import ChunkGrid
from modelcache.domain.refs import Ref
from modelcache.errors import Cancelled
from modelcache.planner import NOBODY, SourceId
from modelcache.sources.source import LocalTarget, Source
from modelcache.store import BlobBusy, BlobWriter, SmallBlobs, Store, WriteMode
from modelcache.transfer.assemblies import AssemblyParts
from modelcache.transfer.checks import Sink, best_checksum
from modelcache.transfer.engine import SHARED_SMALL_BYTES, Transfer
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.memory import cheap_memory_bytes
from modelcache.transfer.policy import write_mode as mode_of
from modelcache.transfer.report import FileProgress, Phase, Progress, ProgressCallback, Report

ACTIVE_MAX: Final = 64  # files shown as under way
RATE_WINDOW_S: Final = 3.0  # over which the present rate is taken
BUSY_POLL_S: Final = 0.1  # how often a blob that another process fetches is looked at


class Fetching:
    """What a pull and a repair share: jobs, writers, progress, waiting for other processes."""

    reader_follows: ClassVar[bool]
    """Whether somebody is about to read what is fetched."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        ref: Ref,
        progress: ProgressCallback | None,
        cancel: threading.Event | None,
        *,
        around: Surroundings | None = None,
    ) -> None:
        self.settings = settings
        self.around = around or Surroundings.alone(settings)
        self.manifest: Manifest | None = None  # what is being fetched, for peers
        self.store = store
        self.ref = ref
        self.place = ref  # where it is asked for: the ref itself, or a mirror
        self.assemblies: tuple[Assembly, ...] = ()  # of the manifest that is being fetched
        self.sinks: dict[BlobId, Sink] = {}  # who takes the bytes of blobs that are not kept
        self.report = Report(ref=ref.redacted(), started_at_s=wall_clock_s())
        self._progress = progress
        self._cancel = cancel
        self._started_s = monotonic()
        self._phase = Phase.RESOLVING
        self._present_bytes = 0
        self._transfer: Transfer | None = None
        self._fetched_before = 0  # by transfers that are over
        self._samples: deque[tuple[float, int]] = deque()
        self._elsewhere_bytes = 0  # stored by the processes we wait for
        self._retries = 0
        self._hedges = 0
        self._need_bytes = 0
        self._brought_bytes = 0  # before the model was known; no part of what was here
        self._cheap_bytes = cheap_memory_bytes()

    def fetch(self, files: Sequence[File], source: Source, *, resume: bool = True) -> None:
        """Bring these blobs into the store; wait for those that somebody else is bringing."""
        pending = [self._job(file, source, resume=resume) for file in files]
        while pending:
            self._phase = Phase.TRANSFERRING
            self._samples.clear()  # what came before is no part of the present rate
            self._tick()  # whoever predicts the rest does it before any of it has come
            with self._small_blobs() as small:
                around = self.around.peers
                transfer = Transfer(
                    self.settings.transfer,
                    small,
                    self._writer,
                    self.report,
                    shared=self.around.shared,
                    me=around.me if around else NOBODY,
                )
                self._transfer = transfer
                try:
                    with (
                        self._steered(transfer),
                        self._readable(transfer, pending, small) as readers,
                        self._shared(transfer, pending) as peers,
                    ):
                        transfer.run(
                            pending,
                            assemblies=self._parts(pending),
                            introduce=_both(readers, peers),
                            tick=self._tick,
                            cancel=self._cancel,
                        )
                finally:
                    self._fetched_before += transfer.stored_bytes()
                    self._transfer = None
                    self._retries += transfer.retries
                    self._hedges += transfer.hedges
            pending = self._wait_for(transfer.busy, source)

    @contextmanager
    def _steered(self, transfer: Transfer) -> Iterator[None]:
        """Let whoever steers this pull steer its transfer."""
        control = self.around.control
        if control is None:
            yield
            return

        def changed() -> None:
            transfer.pause(paused=control.paused)
            transfer.limit(control.limit_bytes_s)

        detach = control.attach(changed)  # which calls it at once, too
        try:
            yield
        finally:
            detach()

    @contextmanager
    def _readable(
        self, transfer: Transfer, jobs: Sequence[BlobJob], small: SmallBlobs
    ) -> Iterator[Callable[[], None] | None]:
        """Let readers of this node have what comes, and say what they need first."""
        if self.around.arriving is None:
            yield None
            return
        with self.around.arriving.joined(transfer, jobs, small) as introduce:
            yield introduce

    @contextmanager
    def _shared(
        self, transfer: Transfer, jobs: Sequence[BlobJob]
    ) -> Iterator[Callable[[], None] | None]:
        """Let peers have what comes, and get from them what they have."""
        peers = self.around.peers
        if peers is None or self.manifest is None or self.place.scheme is Scheme.FILE:
            yield None
            return
        with peers.joined(transfer, jobs, self.manifest) as introduce:
            yield introduce

    def expect(self, files: Sequence[File]) -> None:
        """Say which blobs are about to come, for the bar and for how they are written."""
        self._need_bytes = sum(file.size_bytes for file in files)
        self._present_bytes = self._fetched_before = 0
        self.report.files = len(files)
        self.report.total_bytes = self._need_bytes

    def settle(self, brought_bytes: int) -> None:
        """What was expected has come, and was so many bytes of the model that follows."""
        self._brought_bytes = self._fetched_before = brought_bytes
        self.report.total_bytes = 0

    def pause(self, elsewhere_bytes: int = 0) -> None:
        """Wait a moment for what another process does. Raises Cancelled.

        elsewhere_bytes: stored by it so far, of what is expected.
        """
        self._phase = Phase.WAITING
        self._elsewhere_bytes = elsewhere_bytes
        self._tick()
        if self._cancel is not None and self._cancel.wait(BUSY_POLL_S):
            raise Cancelled("stopped")
        if self._cancel is None:
            threading.Event().wait(BUSY_POLL_S)

    def write_mode(self, size_bytes: int) -> WriteMode:
        """How a blob of this size is written."""
        return mode_of(
            self.settings.transfer.io,
            size_bytes=size_bytes,
            model_bytes=self._need_bytes,
            cheap_bytes=self._cheap_bytes,
            reader_follows=self.reader_follows,
        )

    def _parts(self, pending: Sequence[BlobJob]) -> list[AssemblyParts]:
        """The assemblies that pending blobs belong to, with where the rest of them is."""
        wanted = {job.file.blob for job in pending}
        parts = []
        for assembly in self.assemblies:
            if not wanted.isdisjoint(assembly.blobs):
                rest = set(assembly.blobs) - wanted
                parts.append(AssemblyParts(assembly, {b: self.store.published(b) for b in rest}))
        return parts

    @contextmanager
    def _small_blobs(self) -> Iterator[SmallBlobs]:
        """A group that is committed in any case: what arrived is kept."""
        small = self.store.small_blobs()
        try:
            yield small
        finally:
            try:
                small.commit()
            finally:
                small.close()

    def _job(self, file: File, source: Source, *, resume: bool) -> BlobJob:
        grid = ChunkGrid(file.size_bytes, self.settings.store.chunk_bytes)
        sink = self.sinks.get(file.blob)
        small_bytes = BLOCK_BYTES if self.around.peers is None else SHARED_SMALL_BYTES
        small = file.size_bytes <= small_bytes and sink is None
        source_id = SourceId(self.place.redacted().partition("?")[0])
        job = BlobJob(file, grid, source, source_id, small=small, peers=self.around)
        job.sink = sink
        job.resumes = resume and not small and self.store.has_partial(file.blob)
        if not small:
            checksum = best_checksum(file, verify_md5=self.settings.transfer.verify_md5)
            job.in_order = checksum is not None and not checksum.algorithm.combines
        return job

    def _writer(self, job: BlobJob) -> BlobWriter:
        mode = self.write_mode(job.file.size_bytes)
        self.report.io = mode.value
        writer = self.store.writer(job.file.blob, job.file.size_bytes, mode=mode)
        if self.place.scheme is not Scheme.FILE:
            return writer
        target = job.target(job.source_id, fresh=False)
        if isinstance(target, LocalTarget) and target.share:
            writer.share(Path(target.path), link=target.link)
        return writer

    def _wait_for(self, busy: Sequence[BlobJob], source: Source) -> list[BlobJob]:
        """Wait until others have brought these blobs; return those whose fetcher gave up."""
        started_s = monotonic()
        waiting = list(busy)
        orphaned: list[BlobJob] = []
        while waiting and not orphaned:
            still = []
            for job in waiting:
                if self.store.has_blob(job.file.blob, job.file.size_bytes):
                    self._fetched_before += job.file.size_bytes
                elif self._abandoned(job):
                    orphaned.append(job)
                else:
                    still.append(job)
            waiting = still
            if waiting and not orphaned:
                self.pause(sum(self.store.partial_bytes(job.file.blob) for job in waiting))
        self._elsewhere_bytes = 0
        self.report.lock_wait_s += monotonic() - started_s
        return [self._job(job.file, source, resume=True) for job in (*orphaned, *waiting)]

    def _abandoned(self, job: BlobJob) -> bool:
        """Whether nobody is fetching the blob any more, by taking its lock for a moment."""
        try:
            self._writer(job).close()
        except BlobBusy:
            return False
        return not self.store.has_blob(job.file.blob, job.file.size_bytes)

    def _tick(self) -> None:
        if self._progress is not None:
            self._progress(self._now())

    def _now(self) -> Progress:
        now_s = monotonic()
        transfer = self._transfer
        stored = self._fetched_before + self._elsewhere_bytes
        sources = {name: part.received_bytes for name, part in self.report.sources.items()}
        active: list[FileProgress] = []
        if transfer is not None:
            stored += transfer.stored_bytes()
            for name, received in transfer.received().items():
                sources[name] = sources.get(name, 0) + received
            active = [
                FileProgress(job.file.path, job.file.size_bytes, job.stored_bytes)
                for job in transfer.active()[:ACTIVE_MAX]
            ]
        total = self.report.total_bytes
        done = min(total, self._present_bytes + stored)
        self._samples.append((now_s, done))
        while now_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        first_s, first = self._samples[0]
        rate = (done - first) / (now_s - first_s) if now_s > first_s else 0.0
        return Progress(
            phase=self._phase,
            ref=self.report.ref,
            elapsed_s=now_s - self._started_s,
            files_total=self.report.files,
            files_done=self.report.files - (transfer.left if transfer else 0),
            total_bytes=total,
            present_bytes=self._present_bytes,
            done_bytes=done,
            rate_bytes_s=max(0.0, rate),
            eta_s=(total - done) / rate if rate > 0 else None,
            connections=transfer.connections if transfer else 0,
            retries=self._retries + (transfer.retries if transfer else 0),
            hedges=self._hedges + (transfer.hedges if transfer else 0),
            active=tuple(active),
            sources=sources,
        )


def _both(
    first: Callable[[], None] | None, second: Callable[[], None] | None
) -> Callable[[], None] | None:
    """One after the other; None where there is neither."""
    if first is None or second is None:
        return first or second

    def both() -> None:
        first()
        second()

    return both
