"""Fetching layers and giving their members: what a pull and a repair of packed models share."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from modelcache.agent.clock import wall_clock_s
from modelcache.agent.fetching import Fetching
from modelcache.agent.unpacking.layer import LayerSink, Means, Unpacked
from modelcache.config import BLOCK_BYTES
from modelcache.domain.archives import Compression
from modelcache.domain.layers import Listing
from modelcache.domain.manifests import Archive, File, ModelId
from modelcache.domain.ranges import MIB
from modelcache.errors import CorruptData
from modelcache.sources.source import Source
from modelcache.store import Store, listings, room

GROWTH: Final = 1.25  # bfloat16 weights shrink to about 0.8 in any compressor
ROOM_STEP_BYTES: Final = 256 * MIB  # what is reserved at once when that was not enough


@dataclass(frozen=True, slots=True)
class Wish:
    """An archive to unpack. wants: which members to store, by path; size_bytes: of these."""

    archive: Archive
    wants: Callable[[str], bool]
    size_bytes: int


def wish_all(archive: Archive, wants: Callable[[str], bool]) -> Wish:
    """For an archive of which nothing is known yet."""
    packed = archive.layer.size_bytes
    grown = packed if archive.compression is Compression.NONE else int(packed * GROWTH)
    return Wish(archive, wants, grown)


def wish_names(archive: Archive, listing: Listing, names: set[str]) -> Wish:
    """For some members of a known one."""
    size = sum(entry.size_bytes for entry in listing.entries if entry.path in names)
    return Wish(archive, names.__contains__, size)


class Layers:
    """Unpacks layers on behalf of a pull or a repair of the model `keep`."""

    def __init__(self, fetching: Fetching, source: Source, keep: ModelId) -> None:
        self._fetching = fetching
        self._store = fetching.store
        self._source = source
        self._keep = keep

    @contextmanager
    def unpack(
        self, wishes: Sequence[Wish], files: Sequence[File] = ()
    ) -> Iterator[list[Unpacked]]:
        """Fetch `files` and layers; the members wanted of these are staged until the end.

        A layer that another process was fetching for itself may be left out. Raises what a fetch
        raises, and SourceRefused for layers that cannot be unpacked.
        """
        layers = [wish.archive.layer for wish in wishes]
        wanted = [file for file in (*layers, *files) if not self._is_here(file)]
        self._fetching.expect(wanted)
        reserved = self._make_room(wanted, wishes)
        means = Means(
            self._store,
            self._fetching.write_mode,
            reserved.take,
            self._fetching.settings.oci.unpacked_bytes_max,
        )
        sinks = [LayerSink(wish.archive, wish.wants, means) for wish in wishes]
        try:
            self._fill(sinks, wanted)
            yield [sink.unpacked for sink in sinks if sink.unpacked is not None]
        finally:
            for sink in sinks:
                sink.close()
            self._fetching.report.unpacking_s += sum(sink.seconds for sink in sinks)

    def _fill(self, sinks: Iterable[LayerSink], wanted: Sequence[File]) -> None:
        self._fetching.sinks = {sink.archive.layer.blob: sink for sink in sinks}
        try:
            self._fetching.fetch(wanted, self._source)
        finally:
            self._fetching.sinks = {}
        for sink in sinks:
            if sink.unpacked is None and self._is_here(sink.archive.layer):
                _read_here(self._store, sink)

    def _is_here(self, file: File) -> bool:
        return self._store.has_blob(file.blob, file.size_bytes)

    def _make_room(self, wanted: Sequence[File], wishes: Sequence[Wish]) -> _Reserved:
        reserved = _Reserved(self._store, self._keep)
        members = sum(wish.size_bytes for wish in wishes)
        new = [
            file.size_bytes
            for file in wanted
            if file.size_bytes <= BLOCK_BYTES or not self._store.has_partial(file.blob)
        ]
        reserved.add(members + sum(new), members)
        return reserved


class _Reserved:
    """Room that was reserved for members; more is when they turn out to be larger."""

    def __init__(self, store: Store, keep: ModelId) -> None:
        self._store = store
        self._keep = keep
        self._left = 0
        self._lock = threading.Lock()

    def add(self, need_bytes: int, members_bytes: int) -> None:
        """Reserve, `members_bytes` of it for members. Raises StoreFull."""
        room.reserve(self._store, need_bytes, keep=self._keep, now_s=wall_clock_s())
        self._left += members_bytes

    def take(self, size_bytes: int) -> None:
        """A member of this size is about to be stored. Raises StoreFull."""
        with self._lock:
            if size_bytes > self._left:
                more = max(size_bytes - self._left, ROOM_STEP_BYTES)
                self.add(more, more)
            self._left -= size_bytes


@contextmanager
def only_unpacker(fetching: Fetching, archives: Iterable[Archive]) -> Iterator[None]:
    """Be the only one on this node who unpacks these layers. Raises Cancelled.

    Waits for whoever is at it; everybody takes locks in the same order, so nobody waits for ever.
    """
    layout = fetching.store.layout
    with ExitStack() as held:
        for blob in sorted({archive.layer.blob for archive in archives}):
            while (fd := listings.try_lock(layout, blob)) is None:
                fetching.pause(fetching.store.partial_bytes(blob))
            held.callback(listings.unlock, layout, blob, fd)
        yield


def _read_here(store: Store, sink: LayerSink) -> None:
    """Unpack a layer that is a blob of this store, because it is a file of another model, too."""
    layer = sink.archive.layer
    path, _ = store.published(layer.blob)
    hashed = hashlib.sha256(usedforsecurity=False)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hashed.update(buffer[:size])
            sink.take(buffer[:size])
    if layer.blob != f"sha256-{hashed.hexdigest()}":
        raise CorruptData(f"layer {layer.path} is damaged in this store; run `modelcache verify`")
    sink.complete()
