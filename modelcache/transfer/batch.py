"""Small blobs: several requests under way at once from one thread.

A thread per connection would spend its time handing over the interpreter lock: measured here, 51
futex calls per 64 KiB file. So one thread keeps a few connections ("lanes") busy: it sends a
request on each, then reads the answers in that order, sending the next request on a lane as soon
as its answer is in. The latency of the lanes overlaps; one slow answer delays those behind it by
no more than itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import xxhash

from modelcache.errors import DigestMismatch
from modelcache.planner import SourceId
from modelcache.store import SmallBlobs
from modelcache.transfer.bodies import Body, check_end, is_content_address
from modelcache.transfer.buffers import BufferPool
from modelcache.transfer.checks import matches
from modelcache.transfer.http1 import ResponseHead
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Exchange, Requests

Receive = Callable[[Body, memoryview, SourceReport], None]
Blame = Callable[[BlobJob], None]


class BatchReader:
    """Reads the blobs of one batch. Not thread-safe."""

    def __init__(
        self,
        requests: Requests,
        pool: BufferPool,
        small: SmallBlobs,
        times: WorkerTimes,
        *,
        receive: Receive,
        blame: Blame,
    ) -> None:
        """blame: is told which blob is at fault for whatever is raised from then on."""
        self._requests = requests
        self._pool = pool
        self._small = small
        self._receive = receive
        self._blame = blame
        self._times = times

    def read(
        self,
        jobs: Sequence[BlobJob],
        source_id: SourceId,
        report: SourceReport,
        *,
        lanes: int,
        renew: bool,
    ) -> Iterator[BlobJob]:
        """Yield each job before its answer is awaited; it is staged when the next is asked for.

        Raises what ends one blob; those behind it were not read, those before it are staged.
        """
        waiting = iter(jobs)
        sent: deque[Exchange] = deque()
        for job in waiting:
            self._blame(job)
            sent.append(self._requests.send(job, source_id, None, report, fresh=renew))
            if len(sent) == lanes:
                break
        while sent:
            exchange = sent.popleft()
            self._blame(exchange.job)
            yield exchange.job
            block = self._pool.take()
            try:
                view = block.view[: exchange.job.file.size_bytes]
                body = self._requests.receive(exchange)
                self._receive(body, view, report)
                check_end(exchange.job.file, body)
                self._requests.done(exchange)
                following = next(waiting, None)
                if following is not None:
                    self._blame(following)
                    sent.append(
                        self._requests.send(following, source_id, None, report, fresh=renew)
                    )
                    self._blame(exchange.job)
                self._stage(exchange, view)
            finally:
                block.release()

    def _stage(self, exchange: Exchange, view: memoryview) -> None:
        started_s = perf_counter()
        job = exchange.job
        digest = xxhash.xxh3_128_digest(view)
        promised = self._requests.promised(exchange)
        if promised and promised != (digest,):
            raise DigestMismatch(f"{job.file.path} was damaged on its way from a peer")
        verified = _verify(job, exchange.head if exchange.source is job.source else None, view)
        hashed_s = perf_counter()
        self._small.add(job.file.blob, view, xxh3=digest, verified=verified)
        job.verified = verified
        self._times.hashing_s += hashed_s - started_s
        self._times.writing_s += perf_counter() - hashed_s


def _verify(job: BlobJob, head: ResponseHead | None, view: memoryview) -> str | None:
    """Which checksum vouches. Raises DigestMismatch."""
    published = job.file.checksums
    # The name of a content-addressed blob is a promise to keep; else the response may know best.
    if head is not None and not is_content_address(job.file):
        published = (*job.source.checksums(job.file, head.headers), *published)
    if not published:
        return None
    if not matches(published[0], view):
        raise DigestMismatch(
            f"{job.file.path} does not match the {published[0].algorithm} its origin publishes"
        )
    return published[0].algorithm.value
