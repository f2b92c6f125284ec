"""A model read from its origin straight into tensors, with nothing kept on this machine.

Ranges are asked for over connections that stay open; each answer is held to the pin and the length
that resolving saw. A file that is read whole and whose origin publishes a CRC over all of it is
held to that as well, before the load counts as complete.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import sleep
from typing import Final

from modelcache.agent.pulling import first_of
from modelcache.config import Settings
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.ranges import ByteRange, ChunkGrid
from modelcache.domain.refs import Ref
from modelcache.errors import (
    BadTensors,
    CredentialsExpired,
    SourceUnavailable,
    UsageError,
)
from modelcache.loader.checking import WholeFile, whole_file
from modelcache.loader.index import INDEX_BYTES_MAX
from modelcache.loader.loading import TensorFile
from modelcache.loader.plan import GAP_BYTES_MAX, Piece
from modelcache.planner import SourceId
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.requests import Requests

CONNECTIONS: Final = 16  # 0.4 Gbit/s each at a large object store fills a 6 Gbit/s link
RETRY_S: Final = 0.5  # before the second attempt; doubled each time
RETRY_MAX_S: Final = 20.0
ORIGIN: Final = SourceId("origin")


def origin_model(settings: Settings, ref: Ref) -> OriginModel:
    """Resolve a ref. Raises what resolving raises, UsageError for a model of packed layers."""

    def ask(place: Ref, _: list[str]) -> tuple[Source, Manifest]:
        source = open_source(place.origin(), settings)
        return source, source.resolve(place)

    source, manifest = first_of(settings, ref, ask)
    if manifest.archives:
        raise UsageError(
            f"what {ref.redacted()} holds is known only by unpacking it; load it through the store"
        )
    return OriginModel(settings, source, manifest)


class OriginModel:
    """See `loading.Model`."""

    page_bytes = 1
    threads = CONNECTIONS

    def __init__(self, settings: Settings, source: Source, manifest: Manifest) -> None:
        self._settings = settings
        self._source = source
        self._files = {file.path: file for file in manifest.files}
        self._idle = IdleConnections(2 * CONNECTIONS)
        self._opened: list[OriginFile] = []

    def names(self, *, deep: bool) -> Sequence[str]:
        """See Model."""
        del deep
        return list(self._files)

    def small(self, name: str) -> bytes:
        """See Model. Raises BadTensors for one that is not small."""
        file = self._files[name]
        if file.size_bytes > INDEX_BYTES_MAX:
            raise BadTensors(f"{name} has {file.size_bytes} bytes, which is no index")
        return OriginFile(self._settings, self._source, file, self._idle).head(0, file.size_bytes)

    def open(self, name: str) -> TensorFile:
        """See Model. Raises UsageError for what can only be read as a whole."""
        file = self._files[name]
        if not file.ranges:
            raise UsageError(f"the origin of {name} serves no ranges; load it through the store")
        opened = OriginFile(self._settings, self._source, file, self._idle)
        self._opened.append(opened)
        return opened

    def complete(self) -> None:
        """See Model: what can be checked over whole files is."""
        for file in self._opened:
            file.check()

    def close(self) -> None:
        """See Model."""
        self._idle.close()


class OriginFile:
    """One file of it. Thread-safe: each thread has requests of its own."""

    def __init__(
        self, settings: Settings, source: Source, file: File, idle: IdleConnections
    ) -> None:
        self.size_bytes = file.size_bytes
        self._file = file
        self._settings = settings.transfer
        self._idle = idle
        grid = ChunkGrid(file.size_bytes, settings.store.chunk_bytes)
        self._job = BlobJob(file, grid, source, ORIGIN, small=True)
        self._locating = threading.Lock()
        self._mine = threading.local()
        self._head = bytearray()
        self._whole: WholeFile | None = whole_file(file)

    def close(self) -> None:
        """See TensorFile; connections are the model's."""

    def check(self) -> None:
        """Raises DigestMismatch when all of the file was read and is not what its origin says."""
        if self._whole is not None:
            self._whole.check(bytes(self._head))

    def ready(self, piece: Piece) -> bool:
        """See Reader: asking is the only way to know."""
        del piece
        return True

    def head(self, start: int, size_bytes: int) -> bytes:
        """See TensorFile."""
        data = bytearray(size_bytes)
        if data:
            self._fetch(start, [memoryview(data)])
        if start == len(self._head):
            self._head += data
        return bytes(data)

    def read(self, piece: Piece, into: memoryview) -> None:
        """See Reader."""
        view = into[: min(piece.end, self.size_bytes) - piece.start]
        self._fetch(piece.start, [view])
        if self._whole is not None:
            self._whole.add(piece.start, view)

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        """See Reader."""
        gap = piece.stride_bytes - piece.run_bytes
        rest = memoryview(bytearray(min(gap, GAP_BYTES_MAX)))
        views: list[memoryview] = []
        for number in range(piece.count):
            at = number * piece.run_bytes
            run = into[at : at + piece.run_bytes]
            if gap > GAP_BYTES_MAX:
                self._fetch(piece.start + number * piece.stride_bytes, [run])
            else:
                views += (run, rest)
        if views:
            self._fetch(piece.start, views[:-1])

    def _fetch(self, start: int, views: list[memoryview]) -> None:
        """Fill views with neighbouring bytes, however often it takes.

        Raises what the origin refuses with, and SourceUnavailable when retries are used up.
        """
        pause_s, fresh = RETRY_S, False
        for left in reversed(range(self._settings.retries_max + 1)):
            try:
                self._ask(start, views, fresh=fresh)
            except SourceUnavailable as error:
                self._requests().drop_open()
                if not left:
                    raise
                fresh = isinstance(error, CredentialsExpired)
                sleep(0 if fresh else min(RETRY_MAX_S, error.retry_after_s or pause_s))
                pause_s *= 2
            else:
                return

    def _ask(self, start: int, views: list[memoryview], *, fresh: bool) -> None:
        requests = self._requests()
        span = ByteRange(start, start + sum(map(len, views)))
        with self._locating:
            self._job.target(ORIGIN, fresh=fresh)
        exchange = requests.send(self._job, ORIGIN, span, SourceReport(), fresh=False)
        body = requests.receive(exchange)
        for view in views:
            if body.read_into(view) < len(view):
                raise SourceUnavailable(f"{self._file.path}: the answer was cut short")
        requests.done(exchange)

    def _requests(self) -> Requests:
        found = getattr(self._mine, "requests", None)
        if found is None:
            found = self._mine.requests = Requests(self._settings, self._idle, WorkerTimes())
        assert isinstance(found, Requests)  # noqa: S101
        return found
