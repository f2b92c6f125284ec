"""What is on its way into the store, for those on this node who read it before it is complete.

A reader asks for a range of a blob. It gets bytes that are here: of a complete blob, of a small one
that waits for its commit, or of a chunk that is stored, whose hash or whose origin vouches for it.
For what is missing it says so, and the transfer that brings it makes exactly those chunks the most
urgent. Of a blob that turned out to be wrong nothing is given until all of it is verified.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from modelcache.domain.manifests import BlobId, File
from modelcache.domain.ranges import ByteRange
from modelcache.errors import NotYet, StoreError
from modelcache.store import BlobState, Store
from modelcache.store.partials import Chunks

if TYPE_CHECKING:  # a warm pull is over before a transfer would be imported
    from modelcache.planner import Waiter
    from modelcache.store import SmallBlobs
    from modelcache.transfer.engine import Transfer
    from modelcache.transfer.jobs import BlobJob

LOOK_S: Final = 0.1  # how often a waiting reader looks for what other processes have brought
LEFT_MAX: Final = 256  # blobs without a transfer whose chunks are remembered
TRIES: Final = 3  # a blob may be published, or begun anew, between two looks


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """One transfer under way."""

    transfer: Transfer
    jobs: dict[BlobId, BlobJob]
    small: SmallBlobs


@dataclass(slots=True)
class Audience:
    """Somebody who reads what arrives.

    news: something more is here; quick, for it is called by who stored it. doubted: a blob that was
    read from is not what its origin says; called before any byte of it changes. first: files and
    ranges that are needed before all else.
    """

    news: Callable[[], None]
    doubted: Callable[[BlobId], None]
    first: Sequence[tuple[BlobId, ByteRange]] = field(default_factory=tuple)


class Arriving:
    """See the module. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._flights: list[_Flight] = []
        self._doubted: set[BlobId] = set()
        self._intact: set[BlobId] = set()
        self._audience: list[Audience] = []
        self._left: dict[BlobId, Chunks] = {}
        self.flights = 0
        """Transfers that have begun so far: what is missing has to be wanted of each."""

    # The side of transfers

    @contextmanager
    def joined(
        self, transfer: Transfer, jobs: Sequence[BlobJob], small: SmallBlobs
    ) -> Iterator[Callable[[], None]]:
        """Let readers have what a transfer brings, while it runs.

        What it yields has to be called when the transfer knows its blobs and has
        asked for none.
        """
        flight = _Flight(transfer, {job.file.blob: job for job in jobs}, small)
        transfer.on_here = self._news
        transfer.on_doubt = self._doubt
        with self._lock:
            self._flights.append(flight)
            audience = list(self._audience)
        try:
            yield lambda: self._begin(audience)
        finally:
            with self._lock:
                self._flights.remove(flight)
                self._doubted.difference_update(flight.jobs)
            self._news()

    def _begin(self, audience: Iterable[Audience]) -> None:
        self.flights += 1
        for each in audience:
            self._ask_first(each)
        self._news()  # whoever waits asks again, of this transfer

    def _ask_first(self, audience: Audience) -> None:
        from modelcache.planner import Waiter  # noqa: PLC0415 - see the imports above

        for blob, span in audience.first:
            self.want(blob, span, Waiter.SOON)

    def _news(self) -> None:
        with self._lock:
            audience = list(self._audience)
        for each in audience:
            each.news()
        with self._changed:
            self._changed.notify_all()

    def _doubt(self, job: BlobJob) -> None:
        with self._lock:
            self._doubted.add(job.file.blob)
            audience = list(self._audience)
        for each in audience:
            each.doubted(job.file.blob)

    # The side of readers

    @contextmanager
    def attended(self, audience: Audience) -> Iterator[None]:
        """Tell somebody of news, and have what they need first fetched first."""
        with self._lock:
            self._audience.append(audience)
        try:
            self._ask_first(audience)
            yield
        finally:
            with self._lock:
                self._audience.remove(audience)

    def want(self, blob: BlobId, span: ByteRange, waiter: Waiter) -> bool:
        """Have the missing chunks of a range fetched before others; idempotent.

        False if no transfer of this process brings the blob, now: ask again at the next news.
        """
        from modelcache.planner import ChunkWanted  # noqa: PLC0415 - see the imports above

        found = self._flight(blob)
        if found is None:
            return False
        job = found.jobs[blob]
        for chunk in job.missing(span):
            found.transfer.tell(ChunkWanted(blob, chunk, waiter))
        return True

    def is_complete(self, file: File) -> bool:
        """Whether all of a file is here and is what was published."""
        if not self._store.has_blob(file.blob, file.size_bytes):
            self._intact.discard(file.blob)
            return False
        if file.blob not in self._intact:
            if self._store.blob_state(file.blob) is not BlobState.INTACT:
                return False
            self._intact.add(file.blob)
        return True

    def is_here(self, file: File, span: ByteRange) -> bool:
        """Whether a transfer of this process has brought a range; cheap, and no promise."""
        flight = self._flight(file.blob)
        if flight is None or file.blob in self._doubted:
            return False
        job = flight.jobs[file.blob]
        if job.small:
            fd = flight.small.open_staged(file.blob)
            if fd is not None:
                os.close(fd)
            return fd is not None
        return job.writer is not None and job.has(span)

    def read(self, file: File, offset: int, view: memoryview) -> bool:
        """Fill `view` with the file's bytes from `offset` on; False if some are not here.

        The range must lie within the file. After False `view` may hold anything. Raises StoreError.
        """
        span = ByteRange(offset, offset + len(view))
        for _ in range(TRIES):
            if self.is_complete(file):
                with suppress(FileNotFoundError):  # evicted, or mended, since
                    fd = os.open(self._store.layout.blob(file.blob), os.O_RDONLY | os.O_CLOEXEC)
                    return _read(fd, offset, view, file.path)
                continue
            if file.blob in self._doubted:
                return False
            if self._read_coming(file, span, view):
                return True
            if not self._store.has_blob(file.blob, file.size_bytes):
                return False
        return False

    def _read_coming(self, file: File, span: ByteRange, view: memoryview) -> bool:
        flight = self._flight(file.blob)
        if flight is None:
            return self._read_left(file.blob, span, view, file.path)
        staged = flight.small.open_staged(file.blob)
        if staged is not None:
            return _read(staged, span.start, view, file.path)
        return self._read_partial(flight.jobs[file.blob], span, view)

    def wait(self, file: File, offset: int, view: memoryview, *, timeout_s: float) -> None:
        """As `read`, and make what is missing the most urgent and wait for it. Raises NotYet."""
        from modelcache.planner import Waiter  # noqa: PLC0415 - see the imports above

        until_s = monotonic() + timeout_s
        span = ByteRange(offset, offset + len(view))
        while not self.read(file, offset, view):
            self.want(file.blob, span, Waiter.READER)
            left_s = until_s - monotonic()
            if left_s <= 0:
                raise NotYet(f"{file.path} [{span.start}, {span.end}) did not come in time")
            with self._changed:
                self._changed.wait(min(left_s, LOOK_S))

    def _flight(self, blob: BlobId) -> _Flight | None:
        with self._lock:
            return next((each for each in self._flights if blob in each.jobs), None)

    def _read_left(self, blob: BlobId, span: ByteRange, view: memoryview, name: str) -> bool:
        """Read chunks that a transfer before has left, or that another process stores."""
        known = self._store.partial_chunks(blob, self._left.get(blob))
        if known is None or not known.done.issuperset(known.grid.covering(span)):
            return False
        self._left[blob] = known
        while len(self._left) > LEFT_MAX:
            self._left.pop(next(iter(self._left)), None)
        if not _read_stored(self._store.partial_data(blob), span, view, name):
            return False
        after = self._store.partial_chunks(blob, known)
        return after is not None and after.done.issuperset(known.grid.covering(span))

    @staticmethod
    def _read_partial(job: BlobJob, span: ByteRange, view: memoryview) -> bool:
        """Read stored chunks of a blob under way."""
        writer = job.writer
        if writer is None or job.small or not job.has(span):
            return False
        return _read_stored(writer.data_path, span, view, job.file.path) and job.has(span)


def _read_stored(data: Path, span: ByteRange, view: memoryview, name: str) -> bool:
    """Read chunks that are stored, and nothing beside them into the page cache.

    A page that was read a moment before a direct write lands under it would go on showing what was
    there before. Whether the chunks are stored has to be looked at once more afterwards.
    """
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # published, or begun anew
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return _read(fd, span.start, view, name)


def _read(fd: int, offset: int, view: memoryview, name: str) -> bool:
    """Fill `view`, and close the descriptor. Raises StoreError."""
    try:
        filled = 0
        while filled < len(view):
            size = os.preadv(fd, [view[filled:]], offset + filled)
            if not size:
                return False  # it was cut: somebody else's doing, and the receipt will say so
            filled += size
    except OSError as error:
        raise StoreError(f"{name} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    return True
