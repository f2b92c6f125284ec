"""A model whose tensors are read while it is on its way into the store of this process.

The pull runs in a thread of its own. Headers, and whatever else is waited for, become the most
urgent of what it fetches; everything else is taken as it comes. Tensors may be given before their
file is verified, so nothing is called complete before the pull is; and if a file that was read
turns out not to be what its origin says, the load fails rather than give what was wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from modelcache.agent import Engine
from modelcache.agent.arriving import Audience
from modelcache.agent.snapshot import Snapshot
from modelcache.domain.manifests import BlobId, File, Manifest
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import Ref
from modelcache.errors import BadTensors, DigestMismatch, NotFound, NotYet
from modelcache.loader.index import INDEX_BYTES_MAX
from modelcache.loader.loading import TensorFile
from modelcache.loader.local import LocalFile
from modelcache.loader.plan import PAGE_BYTES, Piece

THREADS: Final = 4  # that read: a network sets the pace, and the pull wants the processors
STEP_S: Final = 0.5  # of a wait: how soon a pull that fails is heard of
LOOK_S: Final = 0.1  # how often a file is looked for that another process may have brought


class Arrival:
    """A pull under way. `begin` it, then either `warm` or `manifest` is set."""

    def __init__(self, engine: Engine, ref: Ref, max_age_s: float | None) -> None:
        self.engine = engine
        self.warm: Snapshot | None = None
        self.manifest: Manifest | None = None
        self._error: BaseException | None = None
        self._known = threading.Event()
        self._over = threading.Event()
        self._cancel = threading.Event()
        self._doubted: set[BlobId] = set()
        self._thread = threading.Thread(
            target=self._pull, args=(ref, max_age_s), name="loader-pull", daemon=True
        )

    def begin(self) -> None:
        """Return when it is known what comes, or all of it is here. Raises what pulling raises."""
        self._thread.start()
        try:
            self._known.wait()
        except BaseException:
            self.stop()
            raise
        self.check()

    def check(self) -> None:
        """Raise what has ended the pull, if it has failed."""
        if self._error is not None:
            raise self._error

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over.is_set()

    def finish(self, read: Sequence[File]) -> None:
        """Wait until the model is complete. read: files that tensors were taken from, early.

        Raises what pulling raises, and DigestMismatch when one of them had to be fetched again.
        """
        self._over.wait()
        self.check()
        for file in read:
            if file.blob in self._doubted:
                raise DigestMismatch(
                    f"{file.path} did not match its origin's checksum when it was first read, and "
                    "has been fetched again since; load it again"
                )

    def stop(self) -> None:
        """End the pull; what has arrived is kept. Idempotent."""
        self._cancel.set()
        self._thread.join()

    def _pull(self, ref: Ref, max_age_s: float | None) -> None:
        audience = Audience(news=lambda: None, doubted=self._doubted.add)
        try:
            with self.engine.arriving.attended(audience):
                self.warm = self.engine.pull(
                    ref, max_age_s=max_age_s, cancel=self._cancel, resolved=self._resolved
                )
        except BaseException as error:  # noqa: BLE001 - whoever loads raises it
            self._error = error
        finally:
            self._over.set()
            self._known.set()

    def _resolved(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._known.set()


class ArrivingModel:
    """See `loading.Model`."""

    page_bytes = PAGE_BYTES
    threads = THREADS

    def __init__(self, arrival: Arrival, manifest: Manifest) -> None:
        self._arrival = arrival
        self._files = {file.path: file for file in manifest.files}
        self._read: list[ArrivingFile] = []

    def names(self, *, deep: bool) -> Sequence[str]:
        """See Model."""
        del deep
        return list(self._files)

    def small(self, name: str) -> bytes:
        """See Model. Raises BadTensors for one that is not small."""
        file = self._files[name]
        if file.size_bytes > INDEX_BYTES_MAX:
            raise BadTensors(f"{name} has {file.size_bytes} bytes, which is no index")
        reader = self.open(name)
        try:
            return reader.head(0, file.size_bytes)
        finally:
            reader.close()

    def open(self, name: str) -> TensorFile:
        """See Model. Its header is asked for at once, before it is waited for."""
        reader = ArrivingFile(self._arrival, self._files[name])
        self._read.append(reader)
        return reader

    def complete(self) -> None:
        """See Model: all of the model is here, and verified."""
        self._arrival.finish([reader.file for reader in self._read if reader.early])

    def close(self) -> None:
        """End the pull, if it goes on."""
        self._arrival.stop()


class ArrivingFile:
    """One file of such a model. Thread-safe."""

    def __init__(self, arrival: Arrival, file: File) -> None:
        self.file = file
        self.size_bytes = file.size_bytes
        self.early = False
        """Whether anything was read of it before it was complete."""
        self._arrival = arrival
        self._arriving = arrival.engine.arriving
        self._local: LocalFile | None = None
        self._look_s = 0.0
        self._opening = threading.Lock()
        self._want(ByteRange(0, min(self.size_bytes, 1)))

    def close(self) -> None:
        """Close. Idempotent."""
        if self._local is not None:
            self._local.close()

    def ready(self, piece: Piece) -> bool:
        """See Reader."""
        if self._complete() is not None:
            return True
        self._arrival.check()
        return self._arriving.is_here(self.file, self._span(piece)) or self._arrival.over

    def head(self, start: int, size_bytes: int) -> bytes:
        """See TensorFile; waits until it is here."""
        data = bytearray(size_bytes)
        self._fill(start, memoryview(data))
        return bytes(data)

    def read(self, piece: Piece, into: memoryview) -> None:
        """See Reader."""
        local = self._complete()
        if local is not None:
            local.read(piece, into)
            return
        span = self._span(piece)
        self._fill(span.start, into[: span.size_bytes])

    def read_runs(self, piece: Piece, into: memoryview) -> None:
        """See Reader."""
        local = self._complete()
        if local is not None:
            local.read_runs(piece, into)
            return
        for number in range(piece.count):
            at = number * piece.run_bytes
            offset = piece.start + number * piece.stride_bytes
            self._fill(offset, into[at : at + piece.run_bytes])

    def _span(self, piece: Piece) -> ByteRange:
        return ByteRange(piece.start, min(piece.end, self.size_bytes))

    def _fill(self, start: int, view: memoryview) -> None:
        """Wait for bytes, and make what is missing urgent. Raises what ended the pull."""
        if not len(view):
            return
        self.early = True
        while True:
            try:
                self._arriving.wait(self.file, start, view, timeout_s=STEP_S)
            except NotYet:
                self._arrival.check()
                if self._arrival.over and not self._arriving.is_complete(self.file):
                    raise
            else:
                return

    def _want(self, span: ByteRange) -> None:
        from modelcache.planner import Waiter  # noqa: PLC0415 - what fetches is loaded by now

        self._arriving.want(self.file.blob, span, Waiter.READER)

    def _complete(self) -> LocalFile | None:
        """The file, once all of it is here; looked for now and then, for that costs a stat."""
        if self._local is None and monotonic() >= self._look_s:
            with self._opening:
                self._look()
        return self._local

    def _look(self) -> None:
        self._look_s = monotonic() + LOOK_S
        if self._local is None and self._arriving.is_complete(self.file):
            path = self._arrival.engine.store.layout.blob(self.file.blob)
            with suppress(NotFound):  # evicted since
                self._local = LocalFile(path)
