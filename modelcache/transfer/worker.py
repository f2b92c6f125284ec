"""One worker thread's hands: connections it keeps, and the reading of one attempt's runs.

Everything that touches bytes is here. A block is read into a pooled buffer, hashed and written
while its neighbours on other workers do the same; each of those calls releases the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from modelcache.config import BLOCK_BYTES, TransferSettings
from modelcache.domain.manifests import BlobId
from modelcache.errors import Cancelled, DigestMismatch, SourceUnavailable
from modelcache.planner import AttemptId, Fetch, Run, peer_of
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
from modelcache.transfer.shared import Shared


@dataclass(slots=True)
class Tools:
    """What all workers share."""

    settings: TransferSettings
    pool: BufferPool
    shared: Shared
    pacer: Pacer  # for all of this transfer
    idle: IdleConnections
    small: SmallBlobs
    open_writer: Callable[[BlobJob], BlobWriter]
    chunk_stored: Callable[[AttemptId, BlobJob, int], None]
    chunk_audited: Callable[[AttemptId, BlobJob, int, bool], None]

    @property
    def pacers(self) -> tuple[Pacer, ...]:
        """What holds back bytes from origins."""
        return (self.shared.origin_pacer, self.shared.cluster_pacer, self.pacer)

    small_stored: Callable[[AttemptId, list[BlobJob]], None]


@dataclass(frozen=True, slots=True)
class _Part:
    """One chunk of an answer, and all that is needed to store it."""

    fetch: Fetch
    job: BlobJob
    chunk: int
    body: Body
    writer: BlobWriter
    check: BlobCheck
    report: SourceReport
    promise: bytes | None  # its XXH3-128, where the source has told it

    def check_promise(self, hashed: ChunkHash) -> None:
        """Raise DigestMismatch where something else came than was announced."""
        if self.promise is not None and self.promise != hashed.xxh3:
            raise DigestMismatch(
                f"chunk {self.chunk} of {self.job.file.path} was damaged on its way from a peer"
            )


class Worker:
    """One thread's state. `run` reads an attempt; `abort` (from any thread) makes it stop."""

    def __init__(self, tools: Tools) -> None:
        self.times = WorkerTimes()
        self.reports: dict[str, SourceReport] = {}
        self.received_bytes = 0  # of the chunk on its way, for progress
        self.blob: BlobId | None = None  # the one being read, which is at fault if that fails
        self._tools = tools
        self._requests = Requests(
            tools.settings, tools.idle, self.times, pacer=tools.shared.request_pacer
        )
        self._aborted = False
        self._curtailed = False
        self._pacers = tools.pacers
        self._haste = threading.Lock()
        self._running = False
        self._urgent = False

    @property
    def first_byte_s(self) -> float:
        """From the last request to its answer."""
        return self._requests.first_byte_s

    def begin(self) -> None:
        """From here on `abort` and `curtail` are about the next attempt.

        Apart from `run`, or an abort between the two would be lost.
        """
        self._aborted = self._curtailed = False
        self._running = True
        self._requests.begin()

    def hasten(self) -> None:
        """Somebody waits for what is being read: others give way. From any thread; idempotent."""
        with self._haste:
            if self._running and not self._urgent:
                self._urgent = True
                self._tools.shared.courtesy.begin()

    def _take_time(self) -> None:
        """Nobody waits for it any more: it is over."""
        with self._haste:
            self._running = False
            if self._urgent:
                self._urgent = False
                self._tools.shared.courtesy.end()

    def run(self, fetch: Fetch, jobs: list[BlobJob]) -> None:
        """Read every run of an attempt, reporting chunks as they are stored. After `begin`.

        Raises a ModelcacheError for whatever ends the attempt early; `Cancelled` after `abort`.
        """
        report = self.reports.setdefault(fetch.source, SourceReport())
        report.hedges += fetch.hedge
        if fetch.urgent:
            self.hasten()
        peer = peer_of(fetch.source) is not None
        self._pacers = (self._tools.pacer,) if peer else self._tools.pacers
        try:
            if jobs[0].small:
                self._read_batch(fetch, jobs, report)
                return
            for run, job in zip(fetch.runs, jobs, strict=True):
                self.blob = run.blob
                self._read_run(fetch, run, job, report)
                if self._curtailed:
                    break
        except SourceUnavailable as error:
            if self._aborted:
                raise Cancelled("attempt was cancelled") from error
            raise
        finally:
            self._take_time()
            self.received_bytes = 0
            self._requests.drop_open()

    def abort(self) -> None:
        """End the attempt at hand, from another thread."""
        self._aborted = True
        self._requests.abort()

    def curtail(self) -> None:
        """End the attempt at hand after the chunk at hand, from another thread."""
        self._curtailed = True

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
            for job in reader.read(
                jobs, fetch.source, report, lanes=fetch.lanes, renew=fetch.renew
            ):
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
        for chunk in range(run.first, run.end) if fetch.serve else ():
            job.coming(chunk, 1)
        try:
            exchange = self._requests.send(job, fetch.source, span, report, fresh=fetch.renew)
            body = self._requests.receive(exchange)
            promised = self._requests.promised(exchange)
            for chunk in range(run.first, run.end):
                promise = promised[chunk - run.first] if len(promised) == run.count else None
                part = _Part(fetch, job, chunk, body, writer, check, report, promise)
                if fetch.audit:
                    self._audit_chunk(part)
                elif fetch.hedge:
                    self._hedge_chunk(part)
                else:
                    self._read_chunk(part)
                if self._curtailed and chunk + 1 < run.end:
                    return
            self._requests.done(exchange)
        finally:
            for chunk in range(run.first, run.end) if fetch.serve else ():
                job.coming(chunk, -1)

    def _read_chunk(self, part: _Part) -> None:
        """Receive, hash and write one chunk, block by block."""
        job, chunk, body, writer, check = part.job, part.chunk, part.body, part.writer, part.check
        attempt, report = part.fetch.attempt, part.report
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
            part.check_promise(hashed)
            blocks, kept = kept, []
            self._finish(part, hashed, blocks)
            stored = True
        finally:
            _release(kept)
            job.release(chunk, attempt, stored=stored)
        self.received_bytes = 0
        self._stored(part)

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

    def _hedge_chunk(self, part: _Part) -> None:
        """Receive a whole chunk into memory, then write it unless the first attempt has."""
        blocks: list[Block] = []
        try:
            hashed = self._receive_chunk(part, blocks)
            if not self._write_over(part, hashed, blocks):
                return
        finally:
            _release(blocks)
        self._stored(part)

    def _audit_chunk(self, part: _Part) -> None:
        """Read a stored chunk again, and replace it if it is not the same.

        From here on others may have it in either case: it is as its origin has it. What a peer has
        is only compared.
        """
        job, chunk = part.job, part.chunk
        blocks: list[Block] = []
        try:
            hashed = self._receive_chunk(part, blocks)
            same = part.writer.is_done(chunk) and part.writer.chunk_hash(chunk) == hashed.xxh3
            if not same and part.fetch.serve:
                if part.writer.is_done(chunk):
                    job.lose([chunk])
                self._write_over(part, hashed, blocks)
        finally:
            _release(blocks)
        if part.fetch.serve:
            job.serve(chunk)
        self._tools.chunk_audited(part.fetch.attempt, job, chunk, same)

    def _receive_chunk(self, part: _Part, blocks: list[Block]) -> ChunkHash:
        """A whole chunk into memory; `blocks` gets it. Raises Cancelled where there is none."""
        job, body = part.job, part.body
        span = job.grid.span(part.chunk)
        hashed = part.check.hasher(part.chunk)
        for start in range(span.start, span.end, BLOCK_BYTES):
            block = self._tools.pool.take_if(left=self._tools.pool.blocks // 4)
            if block is None:
                raise Cancelled("no memory for a hedge")
            blocks.append(block)
            view = block.view[: min(BLOCK_BYTES, span.end - start)]
            self._receive(body, view, part.report)
            self._hash(hashed, view)
        if span.end == job.file.size_bytes:
            check_end(job.file, body)
        part.check_promise(hashed)
        return hashed

    def _write_over(self, part: _Part, hashed: ChunkHash, blocks: list[Block]) -> bool:
        """Write a chunk from memory in place of whoever was at it; False if it is stored."""
        job, chunk, attempt = part.job, part.chunk, part.fetch.attempt
        span = job.grid.span(chunk)
        stored = False
        if not job.take_over(chunk, attempt, self.abort):
            return False
        try:
            for index, block in enumerate(blocks):
                start = span.start + index * BLOCK_BYTES
                size = min(BLOCK_BYTES, span.end - start)
                self._write(part.writer, start, block.view, size)
            self._finish(part, hashed, [])
            stored = True
        finally:
            job.release(chunk, attempt, stored=stored)
        return True

    def _finish(self, part: _Part, hashed: ChunkHash, blocks: list[Block]) -> None:
        started_s = perf_counter()
        job, chunk = part.job, part.chunk
        try:
            part.writer.finish_chunk(chunk, hashed.xxh3, hashed.crc, relayed=not part.fetch.serve)
        except BaseException:
            _release(blocks)
            raise
        job.stored_bytes += job.grid.span(chunk).size_bytes
        written_s = perf_counter()
        part.check.stored(chunk, hashed, blocks)
        self.times.writing_s += written_s - started_s
        self.times.hashing_s += perf_counter() - written_s

    def _stored(self, part: _Part) -> None:
        if part.fetch.serve:
            part.job.serve(part.chunk)
        self._tools.chunk_stored(part.fetch.attempt, part.job, part.chunk)

    # Bytes

    def _take_block(self) -> Block:
        started_s = perf_counter()
        block = self._tools.pool.take()
        self.times.waiting_s += perf_counter() - started_s
        return block

    def _receive(self, body: Body, view: memoryview, report: SourceReport) -> None:
        """Fill `view`. Raises SourceUnavailable when the body ends before that."""
        pacers = [pacer for pacer in self._pacers if pacer.limited]
        filled = 0
        while filled < len(view):
            if self._aborted:
                raise Cancelled("attempt was cancelled")
            if not self._urgent:
                self._tools.shared.courtesy.give_way()
            started_s = perf_counter()
            part = view[filled : filled + STEP_BYTES] if pacers else view[filled:]
            size = body.read_into(part)
            received_s = perf_counter()
            self.times.receiving_s += received_s - started_s
            filled += size
            self.received_bytes += size
            report.received_bytes += size
            if size < len(part):
                raise SourceUnavailable("the body ended before the announced size")
            for pacer in pacers:
                pacer.spend(size)
            if pacers:
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
