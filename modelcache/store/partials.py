"""The folder of a blob under way: taking it, looking into it, and removing it.

    partial/<blob id>/data      the bytes, at their final offsets
    partial/<blob id>/journal   which chunks of them count
    partial/<blob id>/lock      held by whoever fetches the blob, or removes the folder

Only the holder of the lock changes anything in the folder. Whoever removes it deletes the lock
last: until then nobody else can begin there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcache.domain.manifests import BlobId, is_blob_id
from modelcache.domain.ranges import ChunkGrid
from modelcache.store import files, locks
from modelcache.store.journal import boot_id, read_header, read_records
from modelcache.store.layout import Layout

DATA: Final = "data"
JOURNAL: Final = "journal"
LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class Partial:
    """What lies in `partial/`. size_bytes: the room it takes, or has reserved, or will."""

    blob: BlobId
    size_bytes: int
    allocated_bytes: int
    touched_s: float


def take(layout: Layout, blob: BlobId) -> int | None:
    """Lock the blob's folder, making it first; None when somebody has it. Close to release."""
    folder = layout.partial_blob(blob)
    while True:
        with suppress(FileExistsError):
            files.make_folder(folder, 0o700)
        with suppress(FileNotFoundError):  # whoever has just finished took the folder along
            return locks.lock_file(folder / LOCK, wait=False)


def is_held(layout: Layout, blob: BlobId) -> bool:
    """Whether somebody is fetching the blob now."""
    return locks.is_locked(layout.partial_blob(blob) / LOCK)


def remove(layout: Layout, blob: BlobId) -> None:
    """Delete the folder. The caller holds its lock, and lets go of it afterwards. Idempotent."""
    folder = layout.partial_blob(blob)
    # Without its journal the data counts for nothing, so the journal goes first.
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in (JOURNAL, *sorted(names - {JOURNAL, LOCK}), LOCK):
        files.unlink(folder / name)
    with suppress(OSError):  # somebody has made the next lock already: the folder is theirs
        folder.rmdir()


def remove_unheld(layout: Layout, blob: BlobId) -> bool:
    """Delete the folder unless somebody is fetching the blob. True if it is gone."""
    if not layout.partial_blob(blob).is_dir():
        return True
    fd = take(layout, blob)
    if fd is None:
        return False
    try:
        remove(layout, blob)
    finally:
        os.close(fd)
    return True


def stored_bytes(layout: Layout, blob: BlobId) -> int:
    """Bytes whose chunks the journal vouches for, whoever fetches them."""
    try:
        data = (layout.partial_blob(blob) / JOURNAL).read_bytes()
    except OSError:
        return 0
    header = read_header(data, blob)
    if header is None:
        return 0
    grid, boot = header
    records = read_records(data, grid, boot).records
    return sum(grid.span(chunk).size_bytes for chunk in records)


@dataclass(frozen=True, slots=True)
class Chunks:
    """What a partial has, whoever fetches it, if anybody. mark: changes when that may have."""

    grid: ChunkGrid
    done: frozenset[int]
    mark: tuple[int, int, int]


def chunks(layout: Layout, blob: BlobId, known: Chunks | None = None) -> Chunks | None:
    """The chunks that count; None where there is nothing that can be believed without hashing.

    known: what was found before, which one stat may show to be so still.
    """
    path = layout.partial_blob(blob) / JOURNAL
    try:
        status = path.stat()
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        if known is not None and known.mark == mark:
            return known
        data = path.read_bytes()
    except OSError:
        return None
    header = read_header(data, blob)
    if header is None or header[1] != boot_id():
        return None
    found = read_records(data, *header)
    return None if found.doubtful else Chunks(header[0], frozenset(found.records), mark)


def all_partials(layout: Layout) -> Iterator[Partial]:
    """Every blob under way, held or left."""
    with suppress(FileNotFoundError):
        for folder in sorted(layout.partial.iterdir()):
            if is_blob_id(folder.name) and folder.is_dir():
                yield _describe(folder)


def _describe(folder: Path) -> Partial:
    size = allocated = 0
    touched_s = 0.0
    with suppress(FileNotFoundError, NotADirectoryError):
        touched_s = folder.stat().st_mtime
    with suppress(FileNotFoundError, NotADirectoryError):
        touched_s = max(touched_s, (folder / JOURNAL).stat().st_mtime)
    with suppress(FileNotFoundError, NotADirectoryError):
        status = (folder / DATA).stat()
        allocated = status.st_blocks * 512
        size = max(status.st_size, allocated)
    return Partial(BlobId(folder.name), size, allocated, touched_s)
