"""One worker thread's hands: connections it keeps, and the reading of one attempt's runs.

Everything that touches bytes is here. A block is read into a pooled buffer, hashed and written
while its neighbours on other workers do the same; each of those calls releases the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from modelcache.config import BLOCK_BYTES, TransferSettings
from modelcache.domain.manifests import BlobId
from modelcache.errors import Cancelled, SourceUnavailable
from modelcache.planner import AttemptId, Fetch, Run
from modelcache.store import BlobWriter, SmallBlobs
from modelcache.transfer.batch import BatchReader
from modelcache.transfer.bodies import Body, check_end
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.checks import BlobCheck, ChunkHash
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.pacing import STEP_BYTES, Pacer
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Requests


@dataclass(slots=True)
class Tools:
    """What all workers share."""

    settings: TransferSettings
    pool: BufferPool
    pacer: Pacer
    idle: IdleConnections
    small: SmallBlobs
    open_writer: Callable[[BlobJob], BlobWriter]
    chunk_stored: Callable[[AttemptId, BlobJob, int], None]
    small_stored: Callable[[AttemptId, list[BlobJob]], None]


class Worker:
    """One thread's state. `run` reads an attempt; `abort` (from any thread) makes it stop."""

    def __init__(self, tools: Tools) -> None:
        self.times = WorkerTimes()
        self.reports: dict[str, SourceReport] = {}
        self.received_bytes = 0  # of the chunk on its way, for progress
        self.blob: BlobId | None = None  # the one being read, which is at fault if that fails
        self._tools = tools
        self._requests = Requests(tools.settings, tools.idle, self.times)
        self._aborted = False

    @property
    def first_byte_s(self) -> float:
        """From the last request to its answer."""
        return self._requests.first_byte_s

    def run(self, fetch: Fetch, jobs: list[BlobJob]) -> None:
        """Read every run of an attempt, reporting chunks as they are stored.

        Raises a ModelcacheError for whatever ends the attempt early; `Cancelled` after `abort`.
        """
        self._aborted = False
        report = self.reports.setdefault(fetch.source, SourceReport())
        report.hedges += fetch.hedge
        try:
            if jobs[0].small:
                self._read_batch(fetch, jobs, report)
                return
            for run, job in zip(fetch.runs, jobs, strict=True):
                self.blob = run.blob
                self._read_run(fetch, run, job, report)
        except SourceUnavailable as error:
            if self._aborted:
                raise Cancelled("attempt was cancelled") from error
            raise
        finally:
            self.received_bytes = 0
            self._requests.drop_open()

    def abort(self) -> None:
        """End the attempt at hand, from another thread."""
        self._aborted = True
        self._requests.abort()

    def _read_batch(self, fetch: Fetch, jobs: list[BlobJob], report: SourceReport) -> None:
        """Small blobs, over several connections at once."""
        reader = BatchReader(
            self._requests,
            self._tools.pool,
            self._tools.small,
            self.times,
            receive=self._receive,
            blame=self._reading,
        )
        stored: list[BlobJob] = []
        current: BlobJob | None = None
        try:
            for job in reader.read(jobs, report, lanes=fetch.lanes, renew=fetch.renew):
                if current is not None:
                    stored.append(current)
                current = job
            if current is not None:
                stored.append(current)
        finally:
            # Told in one go: the planner's lock once per batch, not once per small file.
            self._tools.small_stored(fetch.attempt, stored)

    def _reading(self, job: BlobJob) -> None:
        self.blob = job.file.blob

    # Runs of chunks

    def _read_run(self, fetch: Fetch, run: Run, job: BlobJob, report: SourceReport) -> None:
        started_s = perf_counter()
        writer = self._tools.open_writer(job)
        self.times.verifying_s += perf_counter() - started_s
        check = job.check
        assert check is not None  # noqa: S101 - opened with the writer
        span = job.grid.span(run.first, run.count)
        exchange = self._requests.send(job, span, report, fresh=fetch.renew)
        body = self._requests.receive(exchange)
        for chunk in range(run.first, run.end):
            if fetch.hedge:
                self._hedge_chunk(fetch.attempt, job, chunk, body, writer, check, report)
            else:
                self._read_chunk(fetch.attempt, job, chunk, body, writer, check, report)
        self._requests.done(exchange)

    def _read_chunk(  # noqa: PLR0917
        self,
        attempt: AttemptId,
        job: BlobJob,
        chunk: int,
        body: Body,
        writer: BlobWriter,
        check: BlobCheck,
        report: SourceReport,
    ) -> None:
        """Receive, hash and write one chunk, block by block."""
        span = job.grid.span(chunk)
        if not job.claim(chunk, attempt, self.abort):
            self._skip(body, span.size_bytes, report)  # only to reach what follows
            return
        hashed = check.hasher(chunk)
        kept: list[Block] = []
        stored = False
        try:
            for start in range(span.start, span.end, BLOCK_BYTES):
                size = min(BLOCK_BYTES, span.end - start)
                kept.append(self._take_block())
                view = kept[-1].view
                self._receive(body, view[:size], report)
                if job.revoked(chunk, attempt):
                    raise Cancelled("a faster attempt took over")
                self._hash(hashed, view[:size])
                self._write(writer, start, view, size)
                if not self._worth_keeping(check):
                    _release(kept)
            if span.end == job.file.size_bytes:
                check_end(job.file, body)
            blocks, kept = kept, []
            self._finish(job, chunk, hashed, blocks, writer, check)
            stored = True
        finally:
            _release(kept)
            job.release(chunk, attempt, stored=stored)
        self.received_bytes = 0
        self._tools.chunk_stored(attempt, job, chunk)

    def _skip(self, body: Body, size_bytes: int, report: SourceReport) -> None:
        block = self._take_block()
        try:
            for start in range(0, size_bytes, BLOCK_BYTES):
                self._receive(body, block.view[: min(BLOCK_BYTES, size_bytes - start)], report)
        finally:
            block.release()

    def _worth_keeping(self, check: BlobCheck) -> bool:
        """Whether blocks wait in memory for an in-order hash: while most of the pool is free."""
        return check.in_order and self._tools.pool.free > self._tools.pool.blocks // 4

    def _hedge_chunk(  # noqa: PLR0917
        self,
        attempt: AttemptId,
        job: BlobJob,
        chunk: int,
        body: Body,
        writer: BlobWriter,
        check: BlobCheck,
        report: SourceReport,
    ) -> None:
        """Receive a whole chunk into memory, then write it unless the first attempt has."""
        span = job.grid.span(chunk)
        hashed = check.hasher(chunk)
        blocks: list[Block] = []
        stored = False
        try:
            for start in range(span.start, span.end, BLOCK_BYTES):
                block = self._tools.pool.take_if(left=self._tools.pool.blocks // 4)
                if block is None:
                    raise Cancelled("no memory for a hedge")
                blocks.append(block)
                view = block.view[: min(BLOCK_BYTES, span.end - start)]
                self._receive(body, view, report)
                self._hash(hashed, view)
            if span.end == job.file.size_bytes:
                check_end(job.file, body)
            if not job.take_over(chunk, attempt, self.abort):
                return
            try:
                for index, block in enumerate(blocks):
                    start = span.start + index * BLOCK_BYTES
                    self._write(writer, start, block.view, min(BLOCK_BYTES, span.end - start))
                self._finish(job, chunk, hashed, [], writer, check)
                stored = True
            finally:
                job.release(chunk, attempt, stored=stored)
        finally:
            _release(blocks)
        self._tools.chunk_stored(attempt, job, chunk)

    def _finish(  # noqa: PLR0917
        self,
        job: BlobJob,
        chunk: int,
        hashed: ChunkHash,
        blocks: list[Block],
        writer: BlobWriter,
        check: BlobCheck,
    ) -> None:
        started_s = perf_counter()
        writer.finish_chunk(chunk, hashed.xxh3, hashed.crc)
        job.stored_bytes += job.grid.span(chunk).size_bytes
        written_s = perf_counter()
        check.stored(chunk, hashed, blocks)
        self.times.writing_s += written_s - started_s
        self.times.hashing_s += perf_counter() - written_s

    # Bytes

    def _take_block(self) -> Block:
        started_s = perf_counter()
        block = self._tools.pool.take()
        self.times.waiting_s += perf_counter() - started_s
        return block

    def _receive(self, body: Body, view: memoryview, report: SourceReport) -> None:
        """Fill `view`. Raises SourceUnavailable when the body ends before that."""
        pacer = self._tools.pacer
        filled = 0
        while filled < len(view):
            if self._aborted:
                raise Cancelled("attempt was cancelled")
            started_s = perf_counter()
            part = view[filled : filled + STEP_BYTES] if pacer.limited else view[filled:]
            size = body.read_into(part)
            received_s = perf_counter()
            self.times.receiving_s += received_s - started_s
            filled += size
            self.received_bytes += size
            report.received_bytes += size
            if size < len(part):
                raise SourceUnavailable("the body ended before the announced size")
            if pacer.limited:
                pacer.spend(size)
                self.times.waiting_s += perf_counter() - received_s

    def _hash(self, hashed: ChunkHash, view: memoryview) -> None:
        started_s = perf_counter()
        hashed.update(view)
        self.times.hashing_s += perf_counter() - started_s

    def _write(self, writer: BlobWriter, offset: int, view: memoryview, size: int) -> None:
        started_s = perf_counter()
        writer.write(offset, view, size)
        self.times.writing_s += perf_counter() - started_s


def _release(blocks: list[Block]) -> None:
    for block in blocks:
        block.release()
    blocks.clear()
