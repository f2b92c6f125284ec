"""What must hold of a store at any moment, given what was said to be finished."""

from __future__ import annotations

from pathlib import Path

from modelcache.domain.manifests import BlobId
from modelcache.store import Store, partials
from modelcache.store.journal import read_header, read_records
from tests.store.support import (
    CHUNK,
    blob_files,
    check_nothing_wrong_is_visible,
    content_id,
    manifest_of,
    random_bytes,
    tree,
)

LARGE = random_bytes(2 * CHUNK + 4096 + 77, 1)
SHARED = random_bytes(CHUNK + 1, 2)
SMALL = {f"small/{n}": random_bytes(300 + n, 10 + n) for n in range(3)}
MODEL = {"weights.bin": LARGE, "sub/shared.bin": SHARED, "empty": b"", **SMALL}
OTHER = {"shared.bin": SHARED, "small": SMALL["small/0"], "own": random_bytes(700, 3)}
DAMAGED = LARGE[: CHUNK + 3] + b"damage" + LARGE[CHUNK + 9 :]


def check(store: Store, said: list[str]) -> None:
    """Nothing wrong is seen, and nothing that was finished is lost."""
    check_nothing_wrong_is_visible(store)
    for word in said:
        match word.split(":"):
            case ["chunk", number]:
                assert int(number) in stored_chunks(store, content_id(LARGE), LARGE)
            case ["warm"]:
                check_warm(store, MODEL)
            case ["pinned"]:
                (lease,) = store.leases(manifest_of(OTHER).model_id)
                assert lease.kind == "pin"


def keeps_other(store: Store, said: list[str]) -> None:
    """What happens to one model is nothing to another."""
    check(store, said)
    check_warm(store, OTHER)


def check_mended(store: Store, said: list[str]) -> None:
    """Readers see the blob as it was or as it should be, and nothing between."""
    shown = store.layout.snapshot(manifest_of(MODEL).model_id) / "weights.bin"
    for path in (store.layout.blob(content_id(LARGE)), shown):
        assert path.read_bytes() in ((LARGE,) if said else (DAMAGED, LARGE))


def check_shared(store: Store, said: list[str]) -> None:
    """The user's own file is never touched."""
    check(store, said)
    assert origin_file(store).read_bytes() == LARGE
    assert origin_file(store).stat().st_mode & 0o777 == 0o640


def origin_file(store: Store) -> Path:
    return store.layout.root.parent / "origin.bin"


def check_warm(store: Store, content: dict[str, bytes]) -> None:
    """The model is there, in its snapshot and in its blobs."""
    manifest = manifest_of(content)
    path = store.snapshot_path(manifest.model_id)
    assert path is not None
    assert tree(path) == content
    assert set(manifest.blobs()) <= {file.name for file in blob_files(store)}


def stored_chunks(store: Store, blob: BlobId, data: bytes) -> set[int]:
    """Chunks of `data` that a journal or a blob vouches for, their bytes compared."""
    if store.has_blob(blob, len(data)):
        return set(range(-(-len(data) // CHUNK)))
    folder = store.layout.partial_blob(blob)
    if not (folder / partials.JOURNAL).exists():
        return set()
    journal = (folder / partials.JOURNAL).read_bytes()
    header = read_header(journal, blob)
    if header is None:
        return set()
    found = set(read_records(journal, *header).records)
    stored = (folder / partials.DATA).read_bytes()
    for chunk in found:
        span = header[0].span(chunk)
        assert stored[span.start : span.end] == data[span.start : span.end]
    return found
