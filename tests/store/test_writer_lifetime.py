"""Who may write a blob, for how long, and what is left when a writer dies."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.errors import BlobBusy, StoreError
from modelcache.store import WriteMode, files
from tests.store.processes import holding, kill
from tests.store.support import (
    CHUNK,
    aligned,
    chunk_hashes,
    content_id,
    random_bytes,
    write_chunk,
    write_missing,
    writing,
)

DATA = random_bytes(3 * CHUNK)
BLOB = content_id(DATA)


def begin(store):
    return store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED)


def begin_and_finish_one(store):
    writer = begin(store)
    write_chunk(writer, DATA, 1)
    return writer


def test_a_second_writer_in_this_process_is_refused(store):
    with writing(store, DATA) as writer:
        assert store.is_busy(BLOB)
        with ThreadPoolExecutor(1) as pool, pytest.raises(BlobBusy):
            pool.submit(begin, store).result()
        write_missing(writer, DATA)  # the first is not disturbed
        assert writer.publish(verified=None).read_bytes() == DATA
    assert not store.is_busy(BLOB)


def test_a_second_process_is_refused_until_the_first_is_killed(store):
    with holding(lambda: begin_and_finish_one(store)) as pid:
        assert store.is_busy(BLOB)
        assert store.partial_bytes(BLOB) == CHUNK
        with pytest.raises(BlobBusy, match="another process"):
            begin(store)
        kill(pid)
        assert not store.is_busy(BLOB)
        with writing(store, DATA) as writer:
            assert writer.done == {1}


def test_asking_whether_a_blob_is_busy_leaves_nothing_behind(store):
    assert not store.is_busy(BLOB)
    assert not list(store.layout.partial.iterdir())


def test_a_closed_writer_refuses_everything(store):
    writer = begin(store)
    write_chunk(writer, DATA, 0)
    writer.close()
    writer.close()
    refused = (
        lambda: writer.write(CHUNK, aligned(DATA[:CHUNK]), CHUNK),
        lambda: writer.read(0, aligned(DATA[:CHUNK]), CHUNK),
        lambda: writer.finish_chunk(1, bytes(16), None),
        lambda: writer.forget_chunks([0]),
        lambda: writer.publish(verified=None),
    )
    for ask in refused:
        with pytest.raises(StoreError, match="was closed"):
            ask()
    assert store.partial_bytes(BLOB) == CHUNK


class HungDisk:
    """Writes that begin, and end when the test says so."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self._real = files.pwrite_all
        monkeypatch.setattr(files, "pwrite_all", self._write)

    def _write(self, fd, data, offset):
        self.begun.set()
        assert self.go_on.wait(30)
        self._real(fd, data, offset)


@pytest.fixture
def disk(monkeypatch):
    hung = HungDisk(monkeypatch)
    yield hung
    hung.go_on.set()


def test_a_write_that_hangs_keeps_the_lock_of_a_closed_writer(store, disk):
    writer = begin(store)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(writer.write, 0, aligned(DATA[:CHUNK]), CHUNK)
        assert disk.begun.wait(30)
        writer.close()
        with pytest.raises(BlobBusy):  # or the late bytes would land under the next holder's hands
            begin(store)
        disk.go_on.set()
        late.result(30)
    begin(store).close()


def test_publishing_waits_for_the_last_write(store, disk):
    writer = begin(store)
    disk.go_on.set()
    write_missing(writer, DATA)
    disk.begun.clear()
    disk.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(writer.write, 0, aligned(DATA[:CHUNK]), CHUNK)
        assert disk.begun.wait(30)
        writer.finish_chunk(0, chunk_hashes(DATA)[0], None)  # its twin brought the same bytes
        publishing = pool.submit(writer.publish, verified=None)
        assert not store.has_blob(BLOB, len(DATA))
        disk.go_on.set()
        late.result(30)
        assert publishing.result(30).read_bytes() == DATA


def test_many_threads_may_write_one_blob(store):
    data = random_bytes(40 * CHUNK + 5)
    with writing(store, data) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda chunk: write_chunk(writer, data, chunk), range(writer.grid.count)))
        assert writer.publish(verified=None).read_bytes() == data


def test_of_many_threads_that_want_one_blob_one_gets_it(store):
    together = threading.Barrier(4)

    def contend(_):
        together.wait(30)
        try:
            with writing(store, DATA) as writer:
                write_missing(writer, DATA)
                writer.publish(verified=None)
        except BlobBusy:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(contend, range(4))) == 1
    assert store.layout.blob(BLOB).read_bytes() == DATA
    assert not list(store.layout.partial.iterdir())
