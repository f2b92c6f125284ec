"""What tests of the store share: small chunks, models made of bytes, and what a store may show."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from modelcache.agent.clock import wall_clock_s
from modelcache.config import StoreSettings
from modelcache.domain.archives import Compression
from modelcache.domain.layers import Entry, EntryKind, Listing
from modelcache.domain.manifests import Archive, BlobId, File, Manifest, Pin, blob_id
from modelcache.domain.ranges import ChunkGrid
from modelcache.store import (
    BlobState,
    BlobWriter,
    Staged,
    StagingFolder,
    Store,
    WriteMode,
    room,
)
from modelcache.store.room import GarbageReport

CHUNK = 8192  # two pages: the smallest that direct writes can have a tail in
ORIGIN = "s3://bucket/model"
LATER_S = 7200.0  # beyond the age up to which temporary files may be somebody's


def settings(path: Path, **changes: Any) -> StoreSettings:
    """Tiny chunks, and the disk to the last byte."""
    return StoreSettings(**{"path": path, "reserve_bytes": 0, "chunk_bytes": CHUNK, **changes})


def open_store(path: Path, **changes: Any) -> Store:
    """A store in `path`, made if need be."""
    return Store.open(settings(path, **changes))


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Deterministic content."""
    return np.random.Generator(np.random.PCG64(seed)).bytes(size_bytes)


def content_id(data: bytes) -> BlobId:
    """The name of a blob whose origin publishes SHA-256."""
    return BlobId(f"sha256-{sha256(data).hexdigest()}")


def origin_id(key: str, size_bytes: int) -> BlobId:
    """The name of a blob whose origin publishes an ETag only."""
    return blob_id(origin=ORIGIN, key=key, size_bytes=size_bytes, pin=Pin("e"), checksums=())


def manifest_of(content: Mapping[str, bytes], origin: str = ORIGIN) -> Manifest:
    """A model of files with this content."""
    files = (File(path, len(data), path, content_id(data)) for path, data in content.items())
    return Manifest.of(origin, files)


def archive_of(layer: bytes, root: str = "") -> Archive:
    """A layer with this content, compressed or not."""
    file = File("layer.tar", len(layer), "layer", content_id(layer))
    return Archive(file, Compression.GZIP, root=root)


def listing_of(content: Mapping[str, bytes]) -> Listing:
    """What a layer of these files holds."""
    return Listing(
        tuple(
            Entry(path, EntryKind.FILE, len(data), content_id(data))
            for path, data in content.items()
        )
    )


def stage(
    folder: StagingFolder, data: bytes, *, mode: WriteMode = WriteMode.BUFFERED, piece: int = 5000
) -> Staged:
    """Write a file into a staging folder, a piece at a time."""
    file = folder.begin(len(data), mode)
    for start in range(0, len(data), piece):
        file.write(memoryview(data)[start : start + piece])
    return file.finish()


def aligned(data: bytes) -> memoryview:
    """A page-aligned buffer that begins with `data` and has room for padding."""
    buffer = memoryview(mmap.mmap(-1, max(1, -(-len(data) // 4096)) * 4096))
    buffer[: len(data)] = data
    return buffer


def write_chunk(writer: BlobWriter, data: bytes, chunk: int) -> None:
    """Write and finish one chunk of a blob that has `data`."""
    span = writer.grid.span(chunk)
    part = data[span.start : span.end]
    writer.write(span.start, aligned(part), len(part))
    writer.finish_chunk(chunk, xxhash.xxh3_128_digest(part), chunk)


def write_missing(writer: BlobWriter, data: bytes) -> list[int]:
    """Write what a writer lacks of `data`; returns the chunks."""
    missing = [chunk for chunk in range(writer.grid.count) if not writer.is_done(chunk)]
    for chunk in missing:
        write_chunk(writer, data, chunk)
    return missing


@contextmanager
def writing(
    store: Store, data: bytes, blob: BlobId | None = None, mode: WriteMode = WriteMode.BUFFERED
) -> Iterator[BlobWriter]:
    """A writer for `data`, closed at the end."""
    writer = store.writer(blob or content_id(data), len(data), mode=mode)
    try:
        yield writer
    finally:
        writer.close()


def put(store: Store, data: bytes, blob: BlobId | None = None) -> Path:
    """Store one blob unless it is there; returns its file."""
    name = blob or content_id(data)
    if store.has_blob(name, len(data)):
        return store.layout.blob(name)
    with writing(store, data, name) as writer:
        write_missing(writer, data)
        return writer.publish(verified="sha256")


def put_small(store: Store, contents: Iterable[bytes]) -> None:
    """Store a group of small blobs, unless they are there."""
    group = store.small_blobs()
    try:
        for data in contents:
            if not store.has_blob(content_id(data), len(data)):
                xxh3 = xxhash.xxh3_128_digest(data)
                group.add(content_id(data), memoryview(data), xxh3=xxh3, verified="sha256")
        group.commit()
    finally:
        group.close()


def put_model(store: Store, content: Mapping[str, bytes], origin: str = ORIGIN) -> Manifest:
    """Store a whole model and show it: the large blobs one by one, the small ones as a group."""
    manifest = manifest_of(content, origin)
    with store.begin_model(manifest, "test"):
        for data in sorted(set(content.values())):
            if len(data) > CHUNK:
                put(store, data)
        put_small(store, sorted({data for data in content.values() if len(data) <= CHUNK}))
        store.add_model(manifest)
    return manifest


def collect(store: Store, *, older_than_s: float = 0.0) -> GarbageReport:
    """Collect garbage as if two hours had passed."""
    now_s = wall_clock_s() + LATER_S
    return room.collect_garbage(store, now_s=now_s, partial_older_than_s=older_than_s)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def check_nothing_wrong_is_visible(store: Store) -> None:
    """Whatever is in `blobs/` has the bytes it is named by; whatever is a snapshot is whole."""
    for path in blob_files(store):
        data = path.read_bytes()
        assert path.name == content_id(data)
        assert store.blob_state(BlobId(path.name)) is BlobState.INTACT
        receipt = store.receipt(BlobId(path.name))
        assert receipt is not None
        assert receipt.chunk_hashes == chunk_hashes(data)
    for path in store.layout.snapshots.glob("[!.]*"):
        (model_id,) = (known for known in store.model_ids() if known == path.name)
        manifest = store.manifest(model_id)
        assert {name: content_id(data) for name, data in tree(path).items()} == {
            file.path: file.blob for file in manifest.files
        }


def check_tidy(store: Store, *manifests: Manifest) -> None:
    """The store holds these models and nothing besides."""
    check_nothing_wrong_is_visible(store)
    layout = store.layout
    wanted = {manifest.model_id for manifest in manifests}
    assert set(store.model_ids()) == wanted
    assert {path.name for path in layout.snapshots.iterdir()} == wanted
    blobs = {blob for manifest in manifests for blob in manifest.blobs()}
    assert {path.name for path in blob_files(store)} == blobs
    receipts = {path.name for path in layout.blobs.glob("*/*.receipt")}
    assert receipts <= {f"{blob}.receipt" for blob in blobs}
    assert not list(layout.partial.iterdir())
    assert not list(layout.trash.iterdir())
    assert not list(layout.root.rglob("*.tmp"))


def blob_files(store: Store) -> list[Path]:
    """Everything in `blobs/` that is not a receipt."""
    return [path for path in store.layout.blobs.glob("*/[!.]*") if path.suffix != ".receipt"]


def chunk_hashes(data: bytes) -> tuple[bytes, ...]:
    """XXH3-128 of every chunk."""
    grid = ChunkGrid(len(data), CHUNK)
    spans = [grid.span(chunk) for chunk in range(grid.count)]
    return tuple(xxhash.xxh3_128_digest(data[span.start : span.end]) for span in spans)
