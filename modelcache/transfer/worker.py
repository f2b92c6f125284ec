"""One worker thread's hands: connections it keeps, and the reading of one attempt's runs.

Everything that touches bytes is here. A block is read into a pooled buffer, hashed and written
while its neighbours on other workers do the same; each of those calls releases the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import xxhash

from modelcache.config import BLOCK_BYTES, TransferSettings
from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ByteRange
from modelcache.errors import Cancelled, DigestMismatch, SourceUnavailable
from modelcache.planner import AttemptId, Fetch, Run
from modelcache.sources.source import HttpTarget, LocalTarget
from modelcache.store import BlobWriter, SmallBlobs
from modelcache.transfer.bodies import Body, LocalBody, check_length, is_content_address
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.checks import BlobCheck, ChunkHash, matches
from modelcache.transfer.http1 import HttpConnection, ResponseHead, endpoint_of
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.pacing import STEP_BYTES, Pacer
from modelcache.transfer.report import SourceReport, WorkerTimes

CONNECTIONS_KEPT: Final = 4  # per worker: a redirecting origin and its stores
IDLE_S: Final = 20.0  # servers close idle connections after 20 s (S3) to 75 s (nginx)


@dataclass(slots=True)
class Tools:
    """What all workers share."""

    settings: TransferSettings
    pool: BufferPool
    pacer: Pacer
    small: SmallBlobs
    open_writer: Callable[[BlobJob], BlobWriter]
    chunk_stored: Callable[[AttemptId, BlobJob, int], None]


class Worker:
    """One thread's state. `run` reads an attempt; `abort` (from any thread) makes it stop."""

    def __init__(self, tools: Tools) -> None:
        self.times = WorkerTimes()
        self.reports: dict[str, SourceReport] = {}
        self.received_bytes = 0  # of the chunk on its way, for progress
        self.first_byte_s = 0.0  # of the attempt's last request
        self.blob: BlobId | None = None  # the one being read
        self._tools = tools
        self._connections: dict[tuple[object, ...], HttpConnection] = {}
        self._current: HttpConnection | None = None
        self._aborted = False
        self._head: ResponseHead | None = None

    def run(self, fetch: Fetch, jobs: list[BlobJob]) -> None:
        """Read every run of an attempt, reporting chunks as they are stored.

        Raises a ModelcacheError for whatever ends the attempt early; `Cancelled` after `abort`.
        """
        self._aborted = False
        for run, job in zip(fetch.runs, jobs, strict=True):
            if self._aborted:
                raise Cancelled("attempt was cancelled")
            report = self.reports.setdefault(fetch.source, SourceReport())
            report.hedges += fetch.hedge
            self.blob = run.blob
            try:
                if job.small:
                    self._read_small(fetch, run, job, report)
                else:
                    self._read_run(fetch, run, job, report)
            except SourceUnavailable as error:
                self._drop_current()
                if self._aborted:
                    raise Cancelled("attempt was cancelled") from error
                raise
            finally:
                self.received_bytes = 0

    def abort(self) -> None:
        """End the attempt at hand, from another thread."""
        self._aborted = True
        connection = self._current
        if connection is not None:
            connection.abort()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # Runs of chunks

    def _read_run(self, fetch: Fetch, run: Run, job: BlobJob, report: SourceReport) -> None:
        started_s = perf_counter()
        writer = self._tools.open_writer(job)
        self.times.verifying_s += perf_counter() - started_s
        check = job.check
        assert check is not None  # noqa: S101 - opened with the writer
        span = job.grid.span(run.first, run.count)
        body = self._open(job, span, report, fresh=fetch.renew)
        for chunk in range(run.first, run.end):
            if fetch.hedge:
                self._hedge_chunk(fetch.attempt, job, chunk, body, writer, check, report)
            else:
                self._read_chunk(fetch.attempt, job, chunk, body, writer, check, report)
        self._keep_current()

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

    # Small blobs

    def _read_small(self, fetch: Fetch, run: Run, job: BlobJob, report: SourceReport) -> None:
        """Receive a blob of at most one block, check it in memory, hand it to the store."""
        size = job.file.size_bytes
        block = self._take_block()
        try:
            view = block.view[:size]
            body = self._open(job, None, report, fresh=fetch.renew)
            self._receive(body, view, report)
            self._keep_current()
            started_s = perf_counter()
            digest = xxhash.xxh3_128_digest(view)
            verified = self._verify_small(job, view)
            hashed_s = perf_counter()
            self.times.hashing_s += hashed_s - started_s
            if job.claim(run.first, fetch.attempt, self.abort):
                stored = False
                try:
                    self._tools.small.add(job.file.blob, view, xxh3=digest, verified=verified)
                    job.stored_bytes = size
                    stored = True
                finally:
                    job.release(run.first, fetch.attempt, stored=stored)
            self.times.writing_s += perf_counter() - hashed_s
        finally:
            block.release()
        self.received_bytes = 0
        self._tools.chunk_stored(fetch.attempt, job, run.first)

    def _verify_small(self, job: BlobJob, view: memoryview) -> str | None:
        published = job.file.checksums
        if self._head is not None and not is_content_address(job.file):
            published = (*job.source.checksums(job.file, self._head.headers), *published)
        # The name of a content-addressed blob is a promise; otherwise the first is the best.
        for checksum in published[:1]:
            if not matches(checksum, view):
                raise DigestMismatch(
                    f"{job.file.path} does not match the {checksum.algorithm} its origin publishes"
                )
            return checksum.algorithm.value
        return None

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

    # Requests

    def _open(
        self, job: BlobJob, span: ByteRange | None, report: SourceReport, *, fresh: bool
    ) -> Body:
        """Ask for a range (None: the whole file) and check all that a head can tell.

        Raises what the source makes of a refusal, OriginChanged, SourceUnavailable.
        """
        started_s = perf_counter()
        target = job.target(fresh=fresh)
        self.times.signing_s += perf_counter() - started_s
        report.requests += 1
        if isinstance(target, LocalTarget):
            self._head = None
            return LocalBody(target, span.start if span else 0)
        if not job.file.ranges:
            span = None
        byte_range = f"bytes={span.start}-{span.end - 1}" if span else None
        connection = self._request(target, byte_range, report)
        head = self._head
        assert head is not None  # noqa: S101 - _request sets it
        try:
            self._check_status(job, head, connection)
            job.source.check_pin(job.file, head.headers)
            check_length(job.file, span, head.headers, connection.length_bytes)
        except BaseException:
            # An error's body may be drained, and then the connection is as good as before.
            self._keep_current()
            raise
        return connection

    def _check_status(self, job: BlobJob, head: ResponseHead, connection: HttpConnection) -> None:
        if head.status not in {200, 206}:
            body = connection.read_error_body()
            raise job.source.refusal(job.file, head.status, head.headers, body)

    def _request(
        self, target: HttpTarget, byte_range: str | None, report: SourceReport
    ) -> HttpConnection:
        for _ in range(2):
            connection = self._connection(target, report)
            reused = connection.answered > 0
            started_s = perf_counter()
            try:
                self._head = connection.get(target, byte_range)
            except SourceUnavailable:
                self._drop_current()
                if reused and not self._aborted:
                    continue  # closed while idle: that is nobody's failure
                raise
            self.first_byte_s = perf_counter() - started_s
            self.times.first_byte_s += self.first_byte_s
            return connection
        raise SourceUnavailable(f"{target.host}:{target.port} closes every connection")

    def _connection(self, target: HttpTarget, report: SourceReport) -> HttpConnection:
        key = endpoint_of(target)
        connection = self._connections.pop(key, None)
        if connection is not None and perf_counter() - connection.used_at_s > IDLE_S:
            connection.close()
            connection = None
        if connection is None:
            started_s = perf_counter()
            connection = HttpConnection(
                target,
                connect_timeout_s=self._tools.settings.connect_timeout_s,
                stall_timeout_s=self._tools.settings.stall_timeout_s,
            )
            self.times.connecting_s += perf_counter() - started_s
            report.connections += 1
        self._current = connection
        return connection

    def _keep_current(self) -> None:
        connection, self._current = self._current, None
        if connection is None:
            return
        if not connection.finished():
            connection.close()
            return
        if len(self._connections) >= CONNECTIONS_KEPT:
            self._connections.pop(next(iter(self._connections))).close()
        self._connections[connection.endpoint] = connection

    def _drop_current(self) -> None:
        connection, self._current = self._current, None
        if connection is not None:
            connection.close()


def _release(blocks: list[Block]) -> None:
    for block in blocks:
        block.release()
    blocks.clear()
