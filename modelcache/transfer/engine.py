"""The engine: joins planner, sources and store; runs actions on worker threads, feeds events back.

One lock guards the planner and the queue of its actions. A worker that has finished something
takes the lock, tells the planner, and usually walks off with the next action itself, so a chunk
costs no hand-over between threads. The thread that called `run` only waits, reports progress and
watches for cancellation.

It decides nothing about what to fetch, and knows nothing of models: blobs come in, blobs are
published. Whatever kills the process, the store holds every chunk that was reported as stored.

It is longer than a sitting because all of it runs under that one lock: the planner's actions, the
workers' events, and the order in which blobs are opened, finished and let go.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Final

from modelcache.config import BLOCK_BYTES, TransferSettings
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.places import origin_name
from modelcache.errors import (
    Cancelled,
    CorruptData,
    CredentialsExpired,
    DigestMismatch,
    ModelcacheError,
    NotYet,
    SourceRefused,
    SourceUnavailable,
    StoreError,
    Throttled,
)
from modelcache.planner import (
    NOBODY,
    Action,
    Announce,
    AttemptEnded,
    AttemptFailed,
    AttemptId,
    BatchStored,
    BlobAdded,
    BlobDropped,
    BlobsAdded,
    Cancel,
    ChunkAudited,
    ChunkStored,
    Curtail,
    Doubted,
    Event,
    Failure,
    Fetch,
    Finish,
    Forget,
    GiveUp,
    Hasten,
    InSequence,
    OriginCapped,
    Paused,
    Planner,
    PlannerLimits,
    Quarantine,
    Remedy,
    SwarmEvent,
    TimerDue,
    Wake,
    peer_of,
)
from modelcache.store import BlobBusy, BlobWriter, SmallBlobs
from modelcache.transfer.assemblies import AssemblyCheck, AssemblyParts
from modelcache.transfer.checks import check_for
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.pacing import Pacer
from modelcache.transfer.report import Report, SourceReport
from modelcache.transfer.shared import Shared
from modelcache.transfer.worker import Tools, Worker

SHARED_SMALL_BYTES: Final = 256 << 10  # among peers, what is larger is read from origins once
TICK_S: Final = 0.1  # progress and cancellation are looked at this often
EVENTS_MAX: Final = 200  # lines of trouble kept for the report
STOP_WAIT_S: Final = 60.0  # workers end within their stall timeout; a hung disk may take longer

OpenWriter = Callable[[BlobJob], BlobWriter]

_REMEDIES: Final = (  # the first that fits
    (NotYet, Remedy.NOT_YET),
    (Throttled, Remedy.THROTTLED),
    (CredentialsExpired, Remedy.RENEW),
    (SourceUnavailable, Remedy.RETRY),
    (SourceRefused, Remedy.REFUSED),
    (CorruptData, Remedy.CORRUPT),
    (Cancelled, Remedy.CANCELLED),
)


class Transfer:
    """Fetches a set of blobs. Use once: `run` ends with everything published, or raises."""

    def __init__(
        self,
        settings: TransferSettings,
        small: SmallBlobs,
        open_writer: OpenWriter,
        report: Report,
        *,
        shared: Shared | None = None,
        me: NodeId = NOBODY,
    ) -> None:
        """`open_writer` makes the store's writer for a job; it may raise BlobBusy or StoreError.

        shared: with other transfers of this process. me: this node, if it has peers.
        """
        shared = shared or Shared(settings)
        pool = shared.pool
        limits = PlannerLimits(
            batch_blob_bytes=BLOCK_BYTES if me == NOBODY else SHARED_SMALL_BYTES,
            connections_start=settings.connections_start,
            connections_max=max(1, min(settings.connections_max, pool.blocks // 2)),
            retries_max=settings.retries_max,
        )
        self.busy: list[BlobJob] = []  # blobs that somebody else is fetching
        self.on_quarantine: Callable[[Quarantine], None] | None = None  # called under the lock
        # An origin has asked for less: after how many seconds it may be asked again, if it said so.
        self.on_throttled: Callable[[float | None], None] | None = None
        self.on_news: Callable[[], None] | None = None  # peers should hear; under the lock
        self.on_stored: Callable[[BlobJob], None] | None = None  # a large blob is published
        # For those who read what comes: something more of it is here, or may have been wrong.
        self.on_here: Callable[[], None] | None = None
        self.on_doubt: Callable[[BlobJob], None] | None = None
        self._settings = settings
        self._planner = Planner(limits, me)
        self._pool = pool
        self._small = small
        self._make_writer = open_writer
        self._report = report
        self._tools = Tools(
            settings=settings,
            pool=pool,
            shared=shared,
            pacer=Pacer(0),
            idle=IdleConnections(limits.connections_max),
            small=small,
            open_writer=self._open_writer,
            chunk_stored=self._chunk_stored,
            chunk_audited=self._chunk_audited,
            small_stored=self._small_stored,
        )
        self._jobs: dict[BlobId, BlobJob] = {}
        self._large: list[BlobJob] = []
        self._small_bytes = 0  # of the small blobs stored so far
        self._unfinished: set[BlobId] = set()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)  # waited for by who runs it
        self._handed = threading.Condition(lock)  # by workers: a task, or another time to wake at
        self._tasks: deque[Fetch | Finish] = deque()
        self._wake_s = float("inf")
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._running: dict[AttemptId, Worker] = {}
        self._lanes = 0  # connections that the running ones use
        self._workers: list[Worker] = []
        self._stopped = False
        self._paused = False
        self._introducing = False
        self._node_cap: int | None = None  # connections to origins; see `cap_origins`
        self._host_cap: int | None = None
        self._rest_until_s = 0.0
        self._error: BaseException | None = None
        self.retries = 0
        self.hedges = 0

    @property
    def connections(self) -> int:
        """Connections in use."""
        return self._lanes

    @property
    def left(self) -> int:
        """Blobs not published yet."""
        return len(self._unfinished)

    def active(self) -> list[BlobJob]:
        """Large blobs under way."""
        with self._changed:
            return [job for job in self._large if job.writer is not None]

    def pause(self, *, paused: bool) -> None:
        """Fetch nothing but what peers wait for, after the chunks that are on their way."""
        self._paused = paused
        self._tools.shared.hosts.changed(self)
        if not self._introducing:
            self.tell(Paused(paused))

    @property
    def paused(self) -> bool:
        """Whether something more urgent has its turn."""
        return self._paused

    def cap_origins(self, connections: int | None, until_s: float) -> None:
        """Keep to this node's part of what all may have, and to none before monotonic then."""
        with self._changed:
            self._node_cap, self._rest_until_s = connections, until_s
            self._tell_caps()

    def share_host(self, connections: int) -> None:
        """See `hosts.Sharer`."""
        with self._changed:
            self._host_cap = connections
            self._tell_caps()

    def _tell_caps(self) -> None:
        caps = [cap for cap in (self._node_cap, self._host_cap) if cap is not None]
        self.tell(OriginCapped(min(caps, default=None), self._rest_until_s))

    def limit(self, bytes_s: int) -> None:
        """Let this transfer take no more than that from anywhere; 0 means no limit."""
        self._tools.pacer.limit(bytes_s)

    def tell(self, event: SwarmEvent) -> None:
        """Let the planner know of something outside; harmless when the transfer is over."""
        with self._changed:
            if not self._stopped:
                self._feed(event)

    def stored_bytes(self) -> int:
        """Bytes in the store or on their way into it."""
        large = sum(job.stored_bytes for job in list(self._large))
        arriving = sum(worker.received_bytes for worker in list(self._workers))
        return self._small_bytes + large + arriving

    def received(self) -> dict[str, int]:
        """Bytes from each source so far; nothing any more once that is in the report."""
        found: dict[str, int] = {}
        for worker in list(self._workers):
            for name, part in list(worker.reports.items()):
                found[name] = found.get(name, 0) + part.received_bytes
        return found

    def run(
        self,
        jobs: Sequence[BlobJob],
        *,
        assemblies: Sequence[AssemblyParts] = (),
        introduce: Callable[[], None] | None = None,
        tick: Callable[[], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Fetch, verify and publish every job's blob, but for those left in `busy`.

        assemblies: whose every wanted blob has a job here. introduce: called when the planner knows
        the blobs and before it may ask for any, to `tell` it of peers. tick: called in this thread
        about ten times a second. Raises the first error that ended a blob for good; what the others
        had stored is kept. Raises Cancelled after `cancel` is set.
        """
        origin = origin_name(jobs[0].source_id) if jobs else ""
        with self._tools.shared.hosts.joined(origin, self):
            try:
                if introduce is not None:
                    self._introducing = True
                    self.tell(Paused(True, fully=True))
                self._start(jobs, assemblies)
                if introduce is not None:
                    introduce()
                    self._introducing = False
                    self.tell(Paused(self._paused))
                while not self._wait(TICK_S):
                    if tick is not None:
                        tick()
                    if cancel is not None and cancel.is_set():
                        raise Cancelled("stopped")
            finally:
                self._stop()
        if self._error is not None:
            raise self._error

    def _start(self, jobs: Sequence[BlobJob], assemblies: Sequence[AssemblyParts]) -> None:
        with self._changed:
            for job in jobs:
                self._jobs[job.file.blob] = job
                self._unfinished.add(job.file.blob)
            self._large = [job for job in jobs if not job.small]
            added = [blob for parts in assemblies for blob in self._start_assembly(parts)]
            for job in jobs:
                if job.assembly is not None:
                    continue
                try:
                    added.append(self._added(job))
                except BlobBusy:
                    self._leave_busy(job)
            self._feed(BlobsAdded(tuple(added)))

    def _start_assembly(self, parts: AssemblyParts) -> list[BlobAdded]:
        """Take all of an assembly's blobs or none: two processes with half each would wait on.

        Every process takes them in the order of the pieces, so the first lock decides.
        """
        members = [
            self._jobs[blob] for blob in dict.fromkeys(parts.assembly.blobs) if blob in self._jobs
        ]
        check = AssemblyCheck(parts, self._pool)
        size_bytes = sum(job.file.size_bytes for job in members)
        added = []
        try:
            for job in members:
                job.assembly = check
                self._open_writer(job)
                sequence = InSequence(members[0].file.blob, size_bytes)
                added.append(replace(self._added(job), in_order=True, sequence=sequence))
        except BlobBusy:
            for job in members:
                if job.writer is not None:
                    job.writer.close()
                    job.writer = None
                self._leave_busy(job)
            return []
        return added

    def _added(self, job: BlobJob) -> BlobAdded:
        """Describe a blob to the planner; one begun before is opened to see what is done."""
        done = job.resume(self._open_writer(job)) if job.resumes else frozenset[int]()
        return BlobAdded(
            blob=job.file.blob,
            grid=job.grid,
            sources=(job.source_id,),
            done=done,
            ranges=job.file.ranges or job.small,
            in_order=job.in_order,
            relayed=job.relayed() & done,
        )

    def _wait(self, seconds: float) -> bool:
        """True when all is done or something failed for good."""
        with self._changed:
            if self._unfinished and self._error is None:
                self._changed.wait(seconds)
            return not self._unfinished or self._error is not None

    def _stop(self) -> None:
        """End all workers; whatever they were reading is dropped, what is stored stays."""
        with self._changed:
            self._stopped = True
            running = list(self._running.values())
            self._changed.notify_all()
            self._handed.notify_all()
        for worker in running:
            worker.abort()
        deadline_s = monotonic() + STOP_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - monotonic()))
        for job in self._jobs.values():
            job.end()
            if job.writer is not None:
                job.writer.close()
                job.writer = None
        self._tools.idle.close()
        for worker in self._workers:
            self._report.workers.add(worker.times)
            self._merge(worker.reports)
        self._workers = []

    def _merge(self, reports: dict[str, SourceReport]) -> None:
        for name, part in reports.items():
            whole = self._report.sources.setdefault(name, SourceReport())
            whole.received_bytes += part.received_bytes
            whole.requests += part.requests
            whole.connections += part.connections
            whole.hedges += part.hedges

    # The planner's side: all of these hold the lock

    def _feed(self, event: Event) -> None:
        for action in self._planner.handle(event, monotonic()):
            self._perform(action)

    def _perform(self, action: Action) -> None:  # noqa: C901, PLR0912 - a table
        match action:
            case Fetch():
                self.hedges += action.hedge
                if action.hedge:
                    self._note(f"hedged {self._describe(action)}")
                self._enqueue(action)
            case Finish():
                self._enqueue(action)
            case Cancel(attempt):
                worker = self._running.get(attempt)
                if worker is not None:
                    worker.abort()
                else:
                    self._withdraw(attempt)
            case Announce():
                if self.on_news is not None:
                    self.on_news()
            case Hasten(attempt):
                self._hasten(attempt)
            case Curtail(attempt):
                worker = self._running.get(attempt)
                if worker is not None:
                    worker.curtail()
            case Quarantine(source, _, lied):
                self._note(f"{source} {'gave wrong bytes' if lied else 'fails'} and is left alone")
                if self.on_quarantine is not None:
                    self.on_quarantine(action)
            case Forget(blob, chunks):
                job = self._jobs[blob]
                job.lose(list(chunks or range(job.grid.count)))
            case GiveUp(blob, failure):
                job = self._jobs[blob]
                error = job.error or SourceUnavailable(f"{job.file.path}: {failure.code}")
                self._fail(error)
            case Wake(at_s):
                self._wake_s = at_s
                self._handed.notify()

    def _enqueue(self, task: Fetch | Finish) -> None:
        if isinstance(task, Finish):
            self._tasks.appendleft(task)  # publishing frees memory and descriptors: first
        else:
            self._tasks.append(task)
        if self._idle >= len(self._tasks):
            self._handed.notify()
        elif not self._stopped:
            worker = Worker(self._tools)
            self._workers.append(worker)
            thread = threading.Thread(
                target=self._work, args=(worker,), name="modelcache-transfer", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _hasten(self, attempt: AttemptId) -> None:
        """Somebody waits for what an attempt reads, or will read when a worker takes it up."""
        worker = self._running.get(attempt)
        if worker is not None:
            worker.hasten()
            return
        for task in self._tasks:
            if isinstance(task, Fetch) and task.attempt == attempt:
                self._tasks.remove(task)
                self._tasks.appendleft(replace(task, urgent=True))
                return

    def _withdraw(self, attempt: AttemptId) -> None:
        """A cancelled attempt that nobody has begun yet."""
        for task in self._tasks:
            if isinstance(task, Fetch) and task.attempt == attempt:
                self._tasks.remove(task)
                self._feed(AttemptFailed(attempt, Failure(Remedy.CANCELLED, Cancelled.code)))
                return

    def _let_go(self, job: BlobJob) -> None:
        """Nothing is left to do for this blob."""
        self._unfinished.discard(job.file.blob)
        self._feed(BlobDropped(job.file.blob))
        if not self._unfinished:
            self._changed.notify_all()

    def _vouch(self, job: BlobJob, checksum: str | None) -> None:
        """Note for the report how a stored blob was checked."""
        verified = self._report.verified
        vouched = checksum or "none"
        verified[vouched] = verified.get(vouched, 0) + job.file.size_bytes

    def _leave_busy(self, job: BlobJob) -> None:
        """Several workers may have met its holder at once."""
        if self._jobs.pop(job.file.blob, None) is not None:
            self.busy.append(job)
            self._large.remove(job)
            self._let_go(job)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stopped = True
        self._changed.notify_all()
        self._handed.notify_all()

    def _note(self, line: str) -> None:
        if len(self._report.events) < EVENTS_MAX:
            self._report.events.append(line)

    def _describe(self, fetch: Fetch) -> str:
        run = fetch.runs[0]
        job = self._jobs.get(run.blob)
        name = job.file.path if job else run.blob
        more = f" and {len(fetch.runs) - 1} more" if len(fetch.runs) > 1 else ""
        return f"{name} chunk {run.first}{more} from {fetch.source}"

    # The workers' side

    def _work(self, worker: Worker) -> None:
        try:
            while (task := self._next_task(worker)) is not None:
                if isinstance(task, Finish):
                    self._finish(worker, task)
                else:
                    self._fetch(worker, task)
        except BaseException as error:  # noqa: BLE001 - the supervisor: `run` raises it again
            with self._changed:
                self._fail(error)

    def _next_task(self, worker: Worker) -> Fetch | Finish | None:
        started_s = perf_counter()
        with self._changed:
            while not self._stopped:
                now_s = monotonic()
                if now_s >= self._wake_s:
                    self._wake_s = float("inf")
                    self._feed(TimerDue())
                    continue
                if self._tasks:
                    task = self._tasks.popleft()
                    if isinstance(task, Fetch):
                        worker.begin()
                        self._running[task.attempt] = worker
                        self._lanes += task.lanes
                        peak = max(self._report.connections_peak, self._lanes)
                        self._report.connections_peak = peak
                    worker.times.waiting_s += perf_counter() - started_s
                    return task
                self._idle += 1
                due_s = self._wake_s - now_s
                self._handed.wait(None if due_s == float("inf") else due_s)
                self._idle -= 1
        return None

    def _fetch(self, worker: Worker, fetch: Fetch) -> None:
        event: Event
        jobs = [self._jobs.get(run.blob) for run in fetch.runs]
        present = [job for job in jobs if job is not None]
        try:
            if len(present) < len(jobs):
                raise Cancelled("a blob was dropped")
            worker.run(fetch, present)
            event = AttemptEnded(fetch.attempt, worker.first_byte_s)
        except BlobBusy:
            event = AttemptFailed(fetch.attempt, Failure(Remedy.CANCELLED, BlobBusy.code))
            with self._changed:
                self._leave_busy(present[0])
        except StoreError:
            raise  # nothing another source could mend
        except ModelcacheError as error:
            event = AttemptFailed(
                fetch.attempt, failure_of(error), self._blame(worker, fetch, error)
            )
        with self._changed:
            del self._running[fetch.attempt]
            self._lanes -= fetch.lanes
            self._idle += 1  # this worker takes one of the tasks that follow
            self._feed(event)
            self._idle -= 1

    def _blame(self, worker: Worker, fetch: Fetch, error: ModelcacheError) -> BlobId | None:
        """Remember what went wrong for the one who reads the message; return the blob at fault."""
        failure = failure_of(error)
        if failure.remedy is Remedy.CANCELLED:
            return None
        throttled = None
        with self._changed:
            self.retries += 1
            source = self._report.sources.setdefault(fetch.source, SourceReport())
            source.failures[failure.code] = source.failures.get(failure.code, 0) + 1
            if isinstance(error, Throttled) and peer_of(fetch.source) is None:
                throttled = self.on_throttled
            job = self._jobs.get(worker.blob) if worker.blob else None
            if job is not None:
                corrupt = isinstance(error, DigestMismatch)
                job.error = damaged(error.message) if corrupt else error
            self._note(f"{failure.remedy} {self._describe(fetch)}: {error.message}")
        if throttled is not None:
            throttled(failure.retry_after_s)
        return worker.blob if failure.remedy is Remedy.REFUSED else None

    def _chunk_stored(self, attempt: AttemptId, job: BlobJob, chunk: int) -> None:
        with self._changed:
            self._feed(ChunkStored(attempt, job.file.blob, chunk))
        self._tell_readers()

    def _chunk_audited(self, attempt: AttemptId, job: BlobJob, chunk: int, same: bool) -> None:
        with self._changed:
            if not same:
                self._note(f"chunk {chunk} of {job.file.path} was another when it was read again")
            self._feed(ChunkAudited(attempt, job.file.blob, chunk, same))

    def _small_stored(self, attempt: AttemptId, jobs: list[BlobJob]) -> None:
        with self._changed:
            for job in jobs:
                if job.file.blob in self._unfinished:  # else a hedge and its twin both brought it
                    self._unfinished.discard(job.file.blob)
                    self._small_bytes += job.file.size_bytes
                    self._vouch(job, job.verified)
            self._feed(BatchStored(attempt, tuple(job.file.blob for job in jobs)))
            if not self._unfinished:
                self._changed.notify_all()
        self._tell_readers()

    def _tell_readers(self) -> None:
        if self.on_here is not None:
            self.on_here()

    def _open_writer(self, job: BlobJob) -> BlobWriter:
        with job.opening:
            if job.writer is None:
                writer = self._make_writer(job)
                job.check = (
                    job.assembly.member(writer)
                    if job.assembly is not None
                    else check_for(
                        job.file,
                        writer,
                        self._pool,
                        verify_md5=self._settings.verify_md5,
                        sink=job.sink,
                    )
                )
                job.writer = writer
            return job.writer

    def _finish(self, worker: Worker, task: Finish) -> None:
        """Ask the origin's checksum, then publish. A mismatch sends chunks back to the planner."""
        job = self._jobs[task.blob]
        started_s = perf_counter()
        writer = self._open_writer(job)
        check = job.check
        assert check is not None  # noqa: S101 - opened with the writer
        bad = check.bad_chunks(writer)
        if bad is not None:
            self._doubt(job, bad, f"{job.file.path} does not match the {check.name} of its origin")
        elif job.assembly is not None:
            self._finish_member(job, job.assembly)
        elif job.sink is not None:
            job.sink.complete()
            self._is_stored(job, check.name)
        else:
            self._publish(job, writer, check.name)
        worker.times.verifying_s += perf_counter() - started_s

    def _publish(self, job: BlobJob, writer: BlobWriter, vouched: str | None) -> None:
        writer.publish(verified=vouched)
        job.writer = None
        self._is_stored(job, vouched)

    def _is_stored(self, job: BlobJob, vouched: str | None) -> None:
        job.end()
        with self._changed:
            self._vouch(job, vouched)
            self._let_go(job)
        if self.on_stored is not None:
            self.on_stored(job)
        self._tell_readers()

    def _finish_member(self, job: BlobJob, assembly: AssemblyCheck) -> None:
        """Nothing of an assembly is published before all of it is here and its checksum holds."""
        with self._changed:
            last = assembly.complete(job.file.blob)
            members = [other for other in self._large if other.assembly is assembly]
        if not last:
            return
        if assembly.holds():
            for member in members:
                self._publish(member, self._open_writer(member), assembly.name)
        else:
            for member in members:
                what = f"{assembly.label} does not match its digest"
                self._doubt(member, list(range(member.grid.count)), what)

    def _doubt(self, job: BlobJob, bad: list[int], what: str) -> None:
        """Chunks are bad, or some of them: those that peers gave are looked at first."""
        if self.on_doubt is not None:
            self.on_doubt(job)
        with self._changed:
            job.error = damaged(what)
            self._note(f"{what}: up to {len(bad)} chunks of {job.file.path} are fetched again")
            self._feed(Doubted(job.file.blob, tuple(bad)))


def damaged(what: str) -> DigestMismatch:
    """The error when fetching again has not helped either."""
    return DigestMismatch(
        f"{what}, however often it is fetched; the object at the origin is damaged"
    )


def failure_of(error: ModelcacheError) -> Failure:
    """What an error means to the planner."""
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), Remedy.RETRY)
    return Failure(remedy, error.code, getattr(error, "retry_after_s", None))
