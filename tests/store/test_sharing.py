"""Local files that enter the store without being copied."""

from __future__ import annotations

import os

import pytest

from modelcache.store import BlobState, WriteMode, files
from tests.store.mounts import sharing_filesystem
from tests.store.support import (
    CHUNK,
    chunk_hashes,
    content_id,
    open_store,
    put_model,
    random_bytes,
    write_chunk,
    write_missing,
    writing,
)

DATA = random_bytes(40 * CHUNK + 5)
BLOB = content_id(DATA)


@pytest.fixture
def origin(tmp_path):
    """A user's own file."""
    path = tmp_path / "origin.bin"
    path.write_bytes(DATA)
    path.chmod(0o640)
    return path


def finish_all(writer):
    for chunk, value in enumerate(chunk_hashes(DATA)):
        writer.finish_chunk(chunk, value, None)


def publish_link(store, origin):
    with writing(store, DATA) as writer:
        assert writer.share(origin, link=True)
        write_chunk(writer, b"ignored" * CHUNK, 0)  # nothing is written through a link
        finish_all(writer)
        return writer.publish(verified=None)


@pytest.mark.parametrize("mode", list(WriteMode))
def test_a_linked_blob_is_the_very_file_and_that_stays_as_it_was(store, origin, mode):
    before = origin.stat()
    with writing(store, DATA, mode=mode) as writer:
        assert writer.share(origin, link=True)
        assert writer.data_path.read_bytes() == DATA
        finish_all(writer)
        path = writer.publish(verified=None)
    assert path.samefile(origin)
    assert origin.read_bytes() == DATA
    after = origin.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not os.listxattr(origin)
    assert store.blob_state(BLOB) is BlobState.INTACT


def test_an_edit_of_a_linked_file_is_noticed(store, origin):
    publish_link(store, origin)
    origin.write_bytes(DATA[:-1] + b"!")
    assert store.blob_state(BLOB) is BlobState.CHANGED


def test_a_linked_file_survives_the_removal_of_its_model(store, origin):
    publish_link(store, origin)
    manifest = put_model(store, {"weights": DATA})
    store.remove_model(manifest.model_id)
    assert not store.has_blob(BLOB, len(DATA))
    assert origin.read_bytes() == DATA


def test_a_link_that_was_not_published_is_never_written_by_the_next(store, origin):
    with writing(store, DATA) as writer:
        assert writer.share(origin, link=True)
        finish_all(writer)
    other = bytes(len(DATA))
    with writing(store, other, BLOB) as writer:
        assert writer.done == frozenset()
        write_missing(writer, other)
    assert origin.read_bytes() == DATA


def test_a_partial_that_has_chunks_is_not_shared(store, origin):
    with writing(store, DATA) as writer:
        write_chunk(writer, DATA, 0)
        assert not writer.share(origin, link=True)
        write_missing(writer, DATA)
        assert not writer.publish(verified=None).samefile(origin)


def test_where_nothing_can_be_shared_the_caller_copies(store, origin, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(files, "link", refuse)
    monkeypatch.setattr(files, "clone", lambda *_: False)
    with writing(store, DATA) as writer:
        assert not writer.share(origin, link=True)
        assert not writer.share(origin, link=False)
        write_missing(writer, DATA)
        assert writer.publish(verified=None).read_bytes() == DATA


@pytest.mark.kernel
@pytest.mark.slow
def test_a_reflinked_blob_takes_no_room_and_is_a_file_of_its_own(tmp_path):
    data = random_bytes(32 << 20)
    with sharing_filesystem(tmp_path / "disk") as disk:
        origin = disk / "origin.bin"
        origin.write_bytes(data)
        os.sync()
        store = open_store(disk / "store", chunk_bytes=len(data))
        used = _used_bytes(disk)
        with writing(store, data, mode=WriteMode.DIRECT) as writer:
            assert writer.share(origin, link=False)
            writer.finish_chunk(0, b"0" * 16, None)
            path = writer.publish(verified=None)
        os.sync()
        assert _used_bytes(disk) - used < len(data) // 2
        assert path.read_bytes() == data
        origin.write_bytes(b"edited")
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o444


def _used_bytes(disk):
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
