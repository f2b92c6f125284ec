"""One blob under way: written, resumed, forgotten, published."""

from __future__ import annotations

import errno
import mmap
import os
import stat

import pytest

from modelcache.errors import BlobBusy, StoreError
from modelcache.store import BlobState, WriteMode, files
from tests.store.support import (
    CHUNK,
    aligned,
    chunk_hashes,
    content_id,
    open_store,
    put,
    random_bytes,
    write_chunk,
    write_missing,
    writing,
)

DATA = random_bytes(2 * CHUNK + 4096 + 77)
BLOB = content_id(DATA)
MODES = list(WriteMode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, CHUNK, CHUNK + 1, 2 * CHUNK, len(DATA)])
def test_a_published_blob_has_its_bytes_and_a_receipt(store, mode, size):
    data = DATA[:size]
    with writing(store, data, mode=mode) as writer:
        write_missing(writer, data)
        path = writer.publish(verified="crc32c")
    assert path.read_bytes() == data
    assert path == store.layout.blob(content_id(data))
    assert store.has_blob(content_id(data), size)
    assert store.blob_state(content_id(data)) is BlobState.INTACT
    receipt = store.receipt(content_id(data))
    assert receipt.chunk_hashes == chunk_hashes(data)
    assert receipt.verified == "crc32c"


def test_a_published_blob_is_read_only_and_leaves_no_partial(store):
    path = put(store, DATA)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert not store.has_partial(BLOB)
    assert not list(store.layout.partial.iterdir())


def test_the_tail_of_a_direct_write_is_padded_on_the_disk_only(store):
    data = DATA[: CHUNK + 10]
    with writing(store, data, mode=WriteMode.DIRECT) as writer:
        assert writer.direct
        buffer = memoryview(mmap.mmap(-1, 4096))
        buffer[:] = b"x" * 4096
        buffer[:10] = data[CHUNK:]
        writer.write(CHUNK, buffer, 10)
        assert writer.data_path.read_bytes()[CHUNK + 10 :] == bytes(4086)
        writer.finish_chunk(1, chunk_hashes(data)[1], None)
        write_missing(writer, data)
        assert writer.publish(verified=None).read_bytes() == data


def test_chunks_may_come_in_any_order(store):
    with writing(store, DATA) as writer:
        for chunk in (2, 0, 1):
            write_chunk(writer, DATA, chunk)
        assert writer.publish(verified=None).read_bytes() == DATA


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", MODES)
def test_a_new_writer_continues_with_what_was_finished(store, before, mode):
    with writing(store, DATA, mode=before) as writer:
        write_chunk(writer, DATA, 1)
        writer.write(0, aligned(DATA[:CHUNK]), CHUNK)  # written, but never finished
    with writing(store, DATA, mode=mode) as writer:
        assert writer.done == {1}
        assert writer.crc(1) == 1
        assert writer.chunk_hash(1) == chunk_hashes(DATA)[1]
        assert write_missing(writer, DATA) == [0, 2]
        assert writer.publish(verified=None).read_bytes() == DATA


def test_a_partial_keeps_its_grid_when_the_setting_changes(tmp_path):
    with writing(open_store(tmp_path / "store"), DATA) as writer:
        write_chunk(writer, DATA, 1)
    other = open_store(tmp_path / "store", chunk_bytes=2 * CHUNK)
    with writing(other, DATA) as writer:
        assert writer.grid.chunk_bytes == CHUNK
        assert writer.done == {1}


def test_a_partial_of_another_size_is_not_continued(store):
    with writing(store, DATA) as writer:
        write_chunk(writer, DATA, 1)
    with writing(store, DATA[:-1], BLOB) as writer:
        assert writer.done == frozenset()


def test_forgotten_chunks_are_written_again(store):
    with writing(store, DATA) as writer:
        write_missing(writer, DATA)
        writer.forget_chunks([0, 2])
        assert writer.done == {1}
    with writing(store, DATA) as writer:
        assert write_missing(writer, DATA) == [0, 2]


def test_writing_into_a_finished_chunk_makes_it_unfinished_first(store):
    with writing(store, DATA) as writer:
        write_chunk(writer, DATA, 0)
        write_chunk(writer, DATA, 1)
        writer.write(CHUNK + 4096, aligned(b"x" * 4096), 4096)
        assert writer.done == {0}
    with writing(store, DATA) as writer:
        assert writer.done == {0}


def test_stored_bytes_can_be_read_back(store):
    with writing(store, DATA) as writer:
        write_chunk(writer, DATA, 0)
        buffer = aligned(bytes(CHUNK))
        writer.read(0, buffer, CHUNK)
        assert bytes(buffer[:CHUNK]) == DATA[:CHUNK]


def test_reading_from_a_file_that_was_cut_is_an_error(store):
    with writing(store, DATA) as writer:
        write_missing(writer, DATA)
        os.truncate(writer.data_path, 100)
        with pytest.raises(StoreError, match="shorter"):
            writer.read(0, aligned(bytes(CHUNK)), CHUNK)


def test_publishing_twice_gives_the_same_blob(store):
    with writing(store, DATA) as writer:
        write_missing(writer, DATA)
        path = writer.publish(verified=None)
        assert writer.publish(verified=None) == path
    assert writer.publish(verified=None) == path


def test_a_complete_partial_is_published_without_writing(store):
    with writing(store, DATA) as writer:
        write_missing(writer, DATA)
    with writing(store, DATA) as writer:
        assert write_missing(writer, DATA) == []
        assert writer.publish(verified=None).read_bytes() == DATA


def test_a_blob_that_is_there_is_not_begun_again(store):
    put(store, DATA)
    with pytest.raises(BlobBusy, match="just been fetched"):
        store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED)
    assert not list(store.layout.partial.iterdir())


def test_a_blob_of_the_wrong_size_is_replaced(store):
    path = put(store, DATA)
    path.unlink()
    path.write_bytes(DATA[:100])
    assert put(store, DATA).read_bytes() == DATA


def test_replacing_leaves_the_old_file_to_who_has_it_open(store):
    path = put(store, DATA)
    with path.open("rb") as reader:
        writer = store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED, replace=True)
        assert writer.done == frozenset()
        write_missing(writer, DATA)
        writer.publish(verified=None)
        assert path.stat().st_ino != os.fstat(reader.fileno()).st_ino
        assert reader.read() == DATA


def test_discarding_leaves_nothing(store):
    writer = store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED)
    write_chunk(writer, DATA, 0)
    writer.discard()
    writer.discard()
    assert not list(store.layout.partial.iterdir())
    with pytest.raises(StoreError, match="closed"):
        writer.publish(verified=None)


def test_a_filesystem_that_refuses_direct_writes_gets_buffered_ones(store, monkeypatch):
    real = files.pwrite_all
    refused = []

    def refuse_once(fd, data, offset):
        if not refused:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd, data, offset)

    monkeypatch.setattr(files, "pwrite_all", refuse_once)
    with writing(store, DATA, mode=WriteMode.DIRECT) as writer:
        write_missing(writer, DATA)
        assert not writer.direct
        assert writer.publish(verified=None).read_bytes() == DATA


def test_a_disk_that_fails_to_sync_is_not_believed_any_more(store, monkeypatch):
    with writing(store, DATA) as writer:
        write_missing(writer, DATA)
        with monkeypatch.context() as failing:
            failing.setattr(files, "fsync", _fail)
            with pytest.raises(StoreError):
                writer.publish(verified=None)
        assert not store.has_blob(BLOB, len(DATA))
        assert writer.done == frozenset()
        with writer.data_path.open("r+b") as lost:  # the kernel dropped what it could not write
            lost.write(bytes(10))
    with writing(store, DATA) as writer:
        assert write_missing(writer, DATA) == [0]
        assert writer.publish(verified=None).read_bytes() == DATA


def _fail(_):
    raise OSError(errno.EIO, "Input/output error")
