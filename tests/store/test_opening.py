"""Opening a store: new, of another format, damaged, somebody else's, or not to be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from modelcache.errors import InvalidConfig, StoreError, StoreReadOnly, StoreTooNew
from modelcache.store import Store, room
from modelcache.store.store import CHUNK_BYTES_MAX
from tests.store.processes import exit_code, fork
from tests.store.support import (
    CHUNK,
    check_tidy,
    content_id,
    open_store,
    put_model,
    random_bytes,
    settings,
    tree,
)

MODEL = {"weights": random_bytes(3 * CHUNK), "small": b"{}"}
NOBODY = 65534


def test_a_new_store_is_made_with_its_parents_and_closed_to_others(tmp_path):
    path = tmp_path / "a/b/store"
    store = open_store(path)
    assert json.loads((path / "store.json").read_bytes()) == {"format": 1}
    assert path.stat().st_mode & 0o777 == 0o700
    check_tidy(store)


def test_opening_again_changes_nothing(tmp_path):
    store = open_store(tmp_path / "store")
    manifest = put_model(store, MODEL)
    before = tree(tmp_path)
    check_tidy(open_store(tmp_path / "store"), manifest)
    assert tree(tmp_path) == before


def test_opening_for_reading_makes_nothing(tmp_path):
    store = Store.open(settings(tmp_path / "store"), write=False)
    assert not (tmp_path / "store").exists()
    assert store.model_ids() == []
    assert room.usage(store).blobs == 0
    assert not store.has_blob(content_id(b""), 0)


def test_folders_that_were_removed_are_made_again(store):
    store.layout.trash.rmdir()
    store.layout.partial.rmdir()
    check_tidy(open_store(store.layout.root))


@pytest.mark.parametrize("number", ["2", "1000000", '"2"', "1.5", "null"])
def test_a_store_of_a_newer_format_is_left_alone(store, number):
    store.layout.marker.write_text(f'{{"format":{number}}}')
    store.layout.trash.rmdir()
    for write in (True, False):
        with pytest.raises(StoreTooNew, match="newer modelcache"):
            Store.open(settings(store.layout.root), write=write)
    assert not store.layout.trash.exists()


@pytest.mark.parametrize("marker", [b"", b"{", b"[]", b"{}", b"7", b"\xff\xfe"])
def test_a_damaged_marker_is_an_error_that_names_it(store, marker):
    store.layout.marker.write_bytes(marker)
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        open_store(store.layout.root)


def test_a_marker_that_cannot_be_read_is_an_error(store):
    store.layout.marker.unlink()
    store.layout.marker.mkdir()
    with pytest.raises(StoreError, match="directory"):
        open_store(store.layout.root)


@pytest.mark.parametrize("name", ["blobs", "models", "refs", "trash"])
def test_a_folder_of_the_same_name_that_is_somebody_elses_is_left_alone(tmp_path, name):
    mine = tmp_path / "project" / name / "precious.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(StoreError, match="not a modelcache store"):
        open_store(tmp_path / "project")
    assert list((tmp_path / "project").rglob("*")) == [mine.parent, mine]


def test_a_store_whose_making_was_cut_is_made_again(store):
    store.layout.marker.unlink()
    check_tidy(open_store(store.layout.root))


def test_a_file_in_place_of_the_store_is_an_error(tmp_path):
    (tmp_path / "store").write_text("?")
    with pytest.raises(StoreError):
        open_store(tmp_path / "store")


def test_a_chunk_that_no_receipt_can_hold_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="chunk_bytes"):
        open_store(tmp_path / "store", chunk_bytes=CHUNK_BYTES_MAX + 1)
    assert not (tmp_path / "store").exists()


# Not ours to write


@pytest.fixture
def open_folder():
    """A folder that every user may enter, which pytest's own are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(work) -> None:
    """Run `work` as a user who owns nothing."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    assert exit_code(fork(child)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_of_somebody_else_can_be_read_if_they_let_us_but_not_written(open_folder):
    path = open_folder / "store"
    manifest = put_model(open_store(path), MODEL)
    for folder in [path, *path.rglob("*")]:
        folder.chmod(0o755 if folder.is_dir() else 0o644)

    def look() -> None:
        with pytest.raises(StoreReadOnly, match="cannot be written"):
            open_store(path)
        store = Store.open(settings(path), write=False)
        assert tree(store.snapshot_path(manifest.model_id)) == MODEL
        assert store.manifest(manifest.model_id) == manifest
        store.touch(manifest.model_id)
        with pytest.raises(StoreReadOnly):
            store.pin(manifest.model_id)
        with pytest.raises(StoreReadOnly):
            store.remove_model(manifest.model_id)
        with pytest.raises(StoreReadOnly):
            store.begin_model(manifest, "test")

    as_nobody(look)
    check_tidy(open_store(path), manifest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_that_may_not_be_entered_is_an_error_and_not_an_empty_store(open_folder):
    open_store(open_folder / "store")

    def look() -> None:
        for write in (True, False):
            with pytest.raises(StoreReadOnly):
                Store.open(settings(open_folder / "store"), write=write)

    as_nobody(look)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_cannot_be_made_where_one_may_not_write(open_folder):
    def look() -> None:
        with pytest.raises(StoreReadOnly):
            open_store(open_folder / "store")

    as_nobody(look)
