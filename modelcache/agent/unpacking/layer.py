"""One layer under way: what takes its bytes from the transfer, and the thread that reads its tar.

The workers of the transfer decompress (`take`, one of them at a time), a thread of the layer's own
hashes and stores members. Whether the bytes are right is known only at the end. So data that cannot
be read is no error before that: it may be the network's doing, and then `restart` follows. What no
damage on the way could bring about, a refused member say, ends the pull at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from modelcache.agent.unpacking.members import LayerReader, Room
from modelcache.agent.unpacking.pipe import Pipe
from modelcache.agent.unpacking.streams import decoder_for
from modelcache.domain.layers import Listing
from modelcache.domain.manifests import Archive
from modelcache.errors import Cancelled, CorruptData, SourceRefused
from modelcache.store import Staged, StagingFolder, Store, WriteMode

RATIO_MAX: Final = 200  # of unpacked to packed; text reaches 20, gzip at most 1032, zstd 30,000
FREE_BYTES: Final = 16 << 30  # whatever the ratio: people try things out with files of zeros


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of a layer. The staged files live as long as the sink."""

    archive: Archive
    listing: Listing
    staged: tuple[Staged, ...]


@dataclass(frozen=True, slots=True)
class Means:
    """What layers are unpacked with. take_room: called with the bytes of each member to store.

    bytes_max: that one layer may unpack to.
    """

    store: Store
    write_mode: Callable[[int], WriteMode]
    take_room: Callable[[int], None]
    bytes_max: int


class LayerSink:
    """See the module, and Sink. `close` it in any case; `unpacked` is set once it is complete."""

    def __init__(self, archive: Archive, wants: Callable[[str], bool], means: Means) -> None:
        """wants: whether the member at a path, relative to the archive's root, is to be stored."""
        self.archive = archive
        self.unpacked: Unpacked | None = None
        self.seconds = 0.0  # spent on decompressing, hashing and writing
        self._wants = wants
        self._means = means
        ratio_max = max(FREE_BYTES, RATIO_MAX * archive.layer.size_bytes)
        self._bytes_max = min(means.bytes_max, ratio_max)
        self._round: _Round | None = None

    def take(self, view: memoryview) -> None:
        """See Sink. Raises SourceRefused, UnsafePath, StoreError, UsageError."""
        if self._round is None:
            self._round = _Round(self.archive, self._wants, self._means, self._bytes_max)
        self._round.take(view)

    def restart(self) -> None:
        """See Sink. What was stored is thrown away."""
        self.close()

    def complete(self) -> None:
        """See Sink. Raises what `take` raises, and SourceRefused for what is no whole tar."""
        if self._round is None:
            raise SourceRefused(f"layer {self.archive.layer.path} is empty")
        try:
            self.unpacked = self._round.complete()
        except CorruptData as error:
            raise SourceRefused(
                f"layer {self.archive.layer.path} cannot be unpacked: {error.message}; its digest "
                "is right, so it was published like this"
            ) from error

    def close(self) -> None:
        """Stop, and remove what was staged. Idempotent."""
        self.unpacked = None
        round_, self._round = self._round, None
        if round_ is not None:
            round_.close()
            self.seconds += round_.seconds


class _Round:
    """Unpacking the layer once, from its first byte."""

    def __init__(
        self, archive: Archive, wants: Callable[[str], bool], means: Means, bytes_max: int
    ) -> None:
        self._archive = archive
        self._bytes_max = bytes_max
        self._bytes = 0
        self._pipe = Pipe()
        self._decoder = decoder_for(archive.compression, self._emit)
        self._decoding_s = 0.0
        self._reading_s = 0.0
        self._ended = False
        self._error: Exception | None = None
        self._listing: Listing | None = None
        self._folder: StagingFolder = means.store.staging_folder()
        room = Room(self._folder, means.write_mode, means.take_room)
        self._reader = LayerReader(archive, wants, room)
        self._thread = threading.Thread(target=self._read, name="modelcache-unpack", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Spent on decompressing, hashing and writing, by all threads."""
        return self._decoding_s + self._reading_s

    def take(self, view: memoryview) -> None:
        self._check()
        if self._error is not None:
            return  # unreadable: the digest will say whether it came like this
        started_s, waited_s = perf_counter(), self._pipe.put_wait_s
        try:
            self._decoder.feed(view)
        except CorruptData as error:
            self._error = error
        finally:
            self._decoding_s += perf_counter() - started_s - (self._pipe.put_wait_s - waited_s)

    def complete(self) -> Unpacked:
        if self._error is None:
            self._decoder.finish()
        self._end(self._pipe.end)
        self._check()
        if self._error is not None:
            raise self._error
        assert self._listing is not None  # noqa: S101 - the thread has come to its end
        return Unpacked(self._archive, self._listing, tuple(self._reader.staged))

    def close(self) -> None:
        self._end(self._pipe.break_off)
        self._folder.close()

    def _check(self) -> None:
        """Raise what no other bytes could mend."""
        if self._error is not None and not isinstance(self._error, CorruptData):
            raise self._error

    def _end(self, end: Callable[[], None]) -> None:
        if not self._ended:
            self._ended = True
            end()
        self._thread.join()

    def _emit(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > self._bytes_max:
            layer = self._archive.layer
            raise SourceRefused(
                f"layer {layer.path} of {layer.size_bytes} bytes unpacks to more than "
                f"{self._bytes_max} bytes: more than oci.unpacked_bytes_max, or than the "
                f"{RATIO_MAX}-fold of its size, which no weights do"
            )
        self._pipe.put(piece)

    def _read(self) -> None:
        started_s = perf_counter()
        try:
            self._listing = self._reader.read(self._pipe)
        except Cancelled:
            return
        except Exception as error:  # noqa: BLE001 - a supervisor: `take` and `complete` raise it
            self._error = self._error or error
        finally:
            self._reading_s = perf_counter() - started_s - self._pipe.read_wait_s
            self._pipe.drain()  # or whoever puts would wait for ever
