"""Files without a name yet: what they become, and what is left of them when they do not."""

from __future__ import annotations

import os

import pytest

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import BlobId, Manifest
from modelcache.errors import StoreError, StoreFull
from modelcache.store import BlobState, Store, WriteMode, census, files, receipts, staging
from tests.store.processes import holding, kill
from tests.store.support import (
    CHUNK,
    blob_files,
    check_nothing_wrong_is_visible,
    content_id,
    manifest_of,
    open_store,
    put,
    random_bytes,
    settings,
    stage,
)

LARGE = random_bytes(BLOCK_BYTES + 3 * CHUNK + 77, 1)
CONTENTS = {
    "empty": b"",
    "small": random_bytes(100, 2),
    "one chunk": random_bytes(CHUNK, 3),
    "chunks and a bit": random_bytes(2 * CHUNK + 1, 4),
    "more than a block": LARGE,
}


@pytest.mark.parametrize("mode", list(WriteMode))
@pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("piece", [1777, 1 << 20])
def test_a_file_written_in_pieces_becomes_the_blob_of_its_content(store, data, mode, piece):
    folder = store.staging_folder()
    staged = stage(folder, data, mode=mode, piece=piece)
    assert not blob_files(store)
    assert staging.publish(store.layout, [staged]) == len(data)
    folder.close()
    assert staged.blob == content_id(data)
    assert store.layout.blob(staged.blob).read_bytes() == data
    receipt = store.receipt(staged.blob)
    assert receipt is not None
    assert receipt.verified == "sha256"
    check_nothing_wrong_is_visible(store)


def test_chunks_larger_than_a_block_are_hashed_whole(tmp_path):
    store = Store.open(settings(tmp_path / "large", chunk_bytes=2 * BLOCK_BYTES))
    data = random_bytes(4 * BLOCK_BYTES + 1, 5)
    folder = store.staging_folder()
    staging.publish(store.layout, [stage(folder, data, mode=WriteMode.DIRECT, piece=700_001)])
    folder.close()
    receipt = store.receipt(content_id(data))
    assert receipt is not None
    with store.layout.blob(content_id(data)).open("rb") as file:
        assert file.read() == data
    assert len(receipt.chunk_hashes) == 3
    assert store.blob_state(content_id(data)) is BlobState.INTACT


@pytest.mark.parametrize("attach", [True, False], ids=["attribute", "receipt file"])
def test_many_files_are_published_as_one_group(store, monkeypatch, attach):
    if not attach:
        monkeypatch.setattr(receipts, "attach", lambda *_: False)
    synced = []
    monkeypatch.setattr(files, "sync_filesystem", synced.append)
    contents = [random_bytes(50 + n, n) for n in range(200)]
    folder = store.staging_folder()
    staging.publish(store.layout, [stage(folder, data) for data in contents])
    folder.close()
    assert len(synced) == 2
    assert {path.name for path in blob_files(store)} == set(map(content_id, contents))
    check_nothing_wrong_is_visible(store)


def test_a_blob_that_is_here_is_left_as_it_is(store):
    data = random_bytes(3 * CHUNK, 6)
    inode = put(store, data).stat().st_ino
    folder = store.staging_folder()
    assert staging.publish(store.layout, [stage(folder, data)]) == 0
    folder.close()
    assert store.layout.blob(content_id(data)).stat().st_ino == inode
    assert not list(store.layout.partial.iterdir())


@pytest.mark.parametrize("attach", [True, False], ids=["attribute", "receipt file"])
def test_a_damaged_blob_is_replaced_and_its_readers_keep_what_they_opened(
    store, monkeypatch, attach
):
    if not attach:
        monkeypatch.setattr(receipts, "attach", lambda *_: False)
    data = random_bytes(3 * CHUNK, 7)
    path = put(store, data)
    path.chmod(0o600)
    path.write_bytes(b"x" * len(data))
    with path.open("rb") as reader:
        folder = store.staging_folder()
        staging.publish(store.layout, [stage(folder, data)], replace={content_id(data)})
        folder.close()
        assert reader.read() == b"x" * len(data)
    assert path.read_bytes() == data
    check_nothing_wrong_is_visible(store)


def test_the_same_content_twice_is_one_blob(store):
    data = random_bytes(CHUNK, 8)
    folder = store.staging_folder()
    staged = [stage(folder, data), stage(folder, data)]
    assert staging.publish(store.layout, staged) == len(data)
    folder.close()
    assert len(blob_files(store)) == 1
    assert not list(store.layout.partial.iterdir())


def test_what_is_abandoned_or_not_published_is_gone_with_its_folder(store):
    folder = store.staging_folder()
    stage(folder, LARGE)
    unfinished = folder.begin(len(LARGE), WriteMode.BUFFERED)
    unfinished.write(memoryview(LARGE)[:100])
    unfinished.abandon()
    unfinished.abandon()
    folder.close()
    folder.close()
    assert not list(store.layout.partial.iterdir())
    assert not blob_files(store)


def test_a_dead_process_folder_is_removed_and_a_living_one_left_alone(store):
    def leave() -> object:
        folder = open_store(store.layout.root).staging_folder()
        stage(folder, LARGE)
        return folder

    with holding(leave) as pid:
        (folder,) = store.layout.partial.iterdir()
        open_store(store.layout.root)
        assert (folder / "1").stat().st_size == len(LARGE)
        kill(pid)
        open_store(store.layout.root)
    assert not list(store.layout.partial.iterdir())


def test_staged_files_count_as_room_that_is_taken(store):
    before = census.committed(store, keep=manifest_of({}).model_id).used_bytes
    folder = store.staging_folder()
    file = folder.begin(len(LARGE), WriteMode.BUFFERED)
    grown = census.committed(store, keep=manifest_of({}).model_id).used_bytes
    assert grown - before >= len(LARGE)
    assert census.usage(store).partial_bytes >= len(LARGE)
    file.abandon()
    folder.close()


def test_a_full_disk_gives_back_what_the_file_got(store, monkeypatch):
    def full(_: int, __: int) -> None:
        raise OSError(28, os.strerror(28))

    folder = store.staging_folder()
    monkeypatch.setattr(files, "preallocate", full)
    with pytest.raises(StoreFull, match="no space"):
        folder.begin(len(LARGE), WriteMode.BUFFERED)
    assert [path.name for path in (store.layout.partial.iterdir())] != []
    folder.close()
    assert not list(store.layout.partial.iterdir())


def test_files_the_disk_did_not_take_are_not_shown(store, monkeypatch):
    def broken(_: int) -> None:
        raise OSError(5, os.strerror(5))

    folder = store.staging_folder()
    staged = stage(folder, LARGE)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError):
        staging.publish(store.layout, [staged])
    assert not blob_files(store)


def test_a_model_lists_its_staged_blobs_before_they_appear(store):
    data = random_bytes(CHUNK, 9)
    manifest: Manifest = manifest_of({"weights": data})
    folder = store.staging_folder()
    with store.begin_model(manifest, "test"):
        staging.publish(store.layout, [stage(folder, data)])
        folder.close()
        assert BlobId(content_id(data)) in store.referenced_blobs()
        assert store.add_model(manifest).is_dir()
