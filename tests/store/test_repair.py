"""Damage in complete blobs: found chunk by chunk, mended beside the old file."""

from __future__ import annotations

import os

import pytest

from modelcache.errors import BlobBusy, StoreError
from modelcache.store import BlobState, WriteMode, repair
from tests.store.support import (
    CHUNK,
    check_tidy,
    collect,
    content_id,
    open_store,
    origin_id,
    put,
    put_model,
    random_bytes,
    tree,
    write_missing,
)

DATA = random_bytes(5 * CHUNK + 100)
BLOB = content_id(DATA)
COUNT = 6


def damage(path, *chunks):
    """Flip a bit in each of these chunks, as a bad disk does: the file's dates stay."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as opened:
        for chunk in chunks:
            opened.seek(chunk * CHUNK + 50)
            (byte,) = opened.read(1)
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([byte ^ 4]))
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def bad(store, blob=BLOB):
    return repair.bad_chunks(store, blob, len(DATA))


def mend(store, chunks, blob=BLOB):
    writer = repair.reopen(store, blob, len(DATA), chunks, mode=WriteMode.DIRECT)
    try:
        fetched = write_missing(writer, DATA)
        writer.publish(verified="sha256")
    finally:
        writer.close()
    return fetched


def test_a_whole_blob_has_no_bad_chunks(store):
    put(store, DATA)
    assert bad(store) == []


@pytest.mark.parametrize("chunks", [(0,), (5,), (1, 3), tuple(range(COUNT))])
def test_hashing_finds_exactly_the_bad_chunks(store, chunks):
    damage(put(store, DATA), *chunks)
    assert store.blob_state(BLOB) is BlobState.INTACT  # one stat cannot see it
    assert bad(store) == list(chunks)


def test_only_bad_chunks_are_fetched_anew(store):
    damage(put(store, DATA), 1, 3)
    assert mend(store, bad(store)) == [1, 3]
    assert bad(store) == []
    assert store.layout.blob(BLOB).read_bytes() == DATA
    assert store.blob_state(BLOB) is BlobState.INTACT


def test_the_damaged_file_itself_is_never_written(store):
    path = put(store, DATA)
    damage(path, 2)
    before = path.read_bytes()
    with path.open("rb") as reader:
        mend(store, [2])
        assert reader.read() == before


def test_snapshots_show_the_mended_blob(store):
    manifest = put_model(store, {"weights": DATA})
    damage(store.layout.blob(BLOB), 0)
    mend(store, bad(store))
    assert store.mend_snapshot(manifest) == 1
    assert tree(store.layout.snapshot(manifest.model_id)) == {"weights": DATA}
    collect(store)
    check_tidy(store, manifest)


def test_a_chunk_that_goes_bad_during_the_repair_is_not_taken_for_good(store):
    path = put(store, DATA)
    damage(path, 1)
    found = bad(store)
    damage(path, 4)
    assert mend(store, found) == [1, 4]
    assert bad(store) == []


def test_a_repair_that_was_cut_goes_on_where_it_was(store):
    damage(put(store, DATA), 1)
    repair.reopen(store, BLOB, len(DATA), [1], mode=WriteMode.BUFFERED).close()
    assert store.partial_bytes(BLOB) == len(DATA) - CHUNK
    assert mend(store, [1]) == [1]
    assert bad(store) == []


def test_one_repairs_at_a_time(store):
    damage(put(store, DATA), 1)
    writer = repair.reopen(store, BLOB, len(DATA), [1], mode=WriteMode.BUFFERED)
    with pytest.raises(BlobBusy):
        repair.reopen(store, BLOB, len(DATA), [1], mode=WriteMode.BUFFERED)
    writer.discard()


def test_a_blob_that_was_cut_lacks_what_was_cut_off(store):
    path = put(store, DATA)
    os.truncate(path, 2 * CHUNK + 10)
    assert not store.has_blob(BLOB, len(DATA))
    assert store.blob_state(BLOB) is BlobState.CHANGED
    assert bad(store) == [2, 3, 4, 5]
    assert mend(store, bad(store)) == [2, 3, 4, 5]


def test_a_blob_that_grew_is_bad_at_its_end(store):
    path = put(store, DATA)
    path.chmod(0o600)
    with path.open("ab") as opened:
        opened.write(b"more")
    assert store.blob_state(BLOB) is BlobState.CHANGED
    assert bad(store) == [COUNT - 1]
    mend(store, bad(store))
    assert store.layout.blob(BLOB).read_bytes() == DATA


def test_a_blob_replaced_by_the_same_bytes_is_good_and_may_be_accepted(store):
    path = put(store, DATA)
    path.unlink()
    path.write_bytes(DATA)
    assert store.blob_state(BLOB) is BlobState.UNKNOWN
    assert bad(store) == []
    assert store.blob_state(BLOB) is BlobState.INTACT


def test_a_touched_blob_is_good(store):
    os.utime(put(store, DATA), ns=(1, 1))
    assert store.blob_state(BLOB) is BlobState.CHANGED
    assert bad(store) == []


def lose_receipt(store, path):
    os.removexattr(path, "user.modelcache.receipt")
    assert store.receipt(BLOB) is None


def test_a_blob_that_lost_its_receipt_is_vouched_for_by_its_name(store):
    lose_receipt(store, put(store, DATA))
    assert bad(store) == []
    assert store.receipt(BLOB).verified == "sha256"


def test_a_damaged_blob_without_receipt_is_bad_entirely(store):
    path = put(store, DATA)
    lose_receipt(store, path)
    damage(path, 3)
    assert bad(store) == list(range(COUNT))
    assert mend(store, bad(store)) == list(range(COUNT))


def test_a_blob_named_by_its_origin_is_in_doubt_without_receipt(store):
    blob = origin_id("weights", len(DATA))
    path = put(store, DATA, blob)
    assert bad(store, blob) == []
    os.removexattr(path, "user.modelcache.receipt")
    assert bad(store, blob) == list(range(COUNT))


def test_the_receipt_keeps_its_grid_when_the_setting_changes(store):
    damage(put(store, DATA), 1, 3)
    other = open_store(store.layout.root, chunk_bytes=2 * CHUNK)
    assert bad(other) == [1, 3]
    writer = repair.reopen(other, BLOB, len(DATA), [1, 3], mode=WriteMode.BUFFERED)
    try:
        write_missing(writer, DATA)
        writer.publish(verified=None)
    finally:
        writer.close()
    assert bad(other) == []


def test_a_blob_that_is_not_there_cannot_be_hashed(store):
    with pytest.raises(StoreError):
        bad(store)


def test_a_store_opened_for_reading_is_checked_and_not_changed(store):
    lose_receipt(store, put(store, DATA))
    reading = type(store).open(store.settings, write=False)
    assert bad(reading) == []
    assert reading.receipt(BLOB) is None
