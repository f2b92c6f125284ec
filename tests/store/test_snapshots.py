"""Snapshots: trees of hard links, shown whole, mended in place."""

from __future__ import annotations

import errno
import os

import pytest

from modelcache.errors import CorruptData
from modelcache.store import files, snapshots
from modelcache.store.snapshots import FSYNC_FOLDERS_MAX
from tests.store.processes import holding
from tests.store.support import (
    CHUNK,
    check_tidy,
    collect,
    content_id,
    manifest_of,
    put,
    put_model,
    put_small,
    random_bytes,
    tree,
)

WEIGHTS = random_bytes(CHUNK + 9)
MODEL = {"weights.bin": WEIGHTS, "a/b/c/deep.json": b"{}", "a/copy.json": b"{}", "empty": b""}


def test_a_snapshot_shows_every_file_under_its_path(store):
    manifest = put_model(store, MODEL)
    path = store.snapshot_path(manifest.model_id)
    assert path == store.layout.snapshots / manifest.model_id
    assert tree(path) == MODEL
    check_tidy(store, manifest)


def test_files_are_links_to_blobs_which_take_no_room_of_their_own(store):
    path = store.snapshot_path(put_model(store, MODEL).model_id)
    assert (path / "weights.bin").samefile(store.layout.blob(content_id(WEIGHTS)))
    assert (path / "a/copy.json").samefile(path / "a/b/c/deep.json")


def test_anybody_may_read_and_nobody_may_write(store):
    before = os.umask(0o077)
    try:
        path = store.snapshot_path(put_model(store, MODEL).model_id)
    finally:
        os.umask(before)
    for found in (path, *path.rglob("*")):
        assert found.stat().st_mode & 0o777 == (0o755 if found.is_dir() else 0o444)


def test_a_model_of_many_folders_is_shown_like_any_other(store):
    model = {f"{number:03d}/x": b"{}" for number in range(FSYNC_FOLDERS_MAX + 2)}
    manifest = put_model(store, model)
    assert tree(store.snapshot_path(manifest.model_id)) == model


def test_a_model_lacking_a_blob_is_not_shown(store):
    manifest = manifest_of(MODEL)
    with store.begin_model(manifest, "test"):
        put(store, WEIGHTS)
        with pytest.raises(CorruptData, match=r"a/b/c/deep\.json is missing"):
            store.add_model(manifest)
        assert store.snapshot_path(manifest.model_id) is None
        assert not list(store.layout.snapshots.iterdir())
        put_small(store, [b"{}", b""])
        assert tree(store.add_model(manifest)) == MODEL


def test_showing_twice_is_showing_once(store):
    manifest = put_model(store, MODEL)
    before = store.layout.snapshot(manifest.model_id).stat().st_ino
    assert store.add_model(manifest).stat().st_ino == before
    check_tidy(store, manifest)


def test_a_file_that_was_deleted_from_a_snapshot_comes_back(store):
    manifest = put_model(store, MODEL)
    path = store.layout.snapshot(manifest.model_id)
    (path / "a/b/c/deep.json").unlink()
    (path / "a/b/c").rmdir()
    (path / "a/b").rmdir()
    assert store.mend_snapshot(manifest) == 1
    assert tree(path) == MODEL
    assert store.mend_snapshot(manifest) == 0
    check_tidy(store, manifest)


def test_a_file_that_was_replaced_in_a_snapshot_is_linked_again(store):
    manifest = put_model(store, MODEL)
    file = store.layout.snapshot(manifest.model_id) / "weights.bin"
    file.unlink()
    file.write_bytes(b"something else")
    store.add_model(manifest)
    assert tree(store.layout.snapshot(manifest.model_id)) == MODEL


def test_a_snapshot_whose_blob_is_gone_cannot_be_mended(store):
    manifest = put_model(store, MODEL)
    store.layout.blob(content_id(WEIGHTS)).unlink()
    with pytest.raises(CorruptData, match=r"weights\.bin is missing"):
        store.mend_snapshot(manifest)
    put(store, WEIGHTS)
    assert store.mend_snapshot(manifest) == 1
    assert tree(store.layout.snapshot(manifest.model_id)) == MODEL


def test_a_model_without_snapshot_has_nothing_to_mend(store):
    assert store.mend_snapshot(manifest_of(MODEL)) == 0
    assert not list(store.layout.snapshots.iterdir())


def test_readers_keep_the_file_they_opened(store):
    manifest = put_model(store, MODEL)
    with (store.layout.snapshot(manifest.model_id) / "weights.bin").open("rb") as reader:
        store.remove_model(manifest.model_id)
        assert reader.read() == WEIGHTS
    check_tidy(store)


def test_a_blob_that_a_neighbour_replaces_while_it_is_linked_is_linked_all_the_same(
    store, monkeypatch
):
    manifest = manifest_of(MODEL)
    put(store, WEIGHTS)
    put_small(store, [b"{}", b""])
    real, replaced = files.link, []

    def replace_first(source, target):
        if source not in replaced:
            replaced.append(source)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        real(source, target)

    monkeypatch.setattr(files, "link", replace_first)
    assert tree(store.add_model(manifest)) == MODEL
    assert len(replaced) == 3


def test_a_blob_with_more_names_than_the_filesystem_allows_is_copied(store, monkeypatch):
    manifest = manifest_of(MODEL)

    def refuse(*_):
        raise OSError(errno.EMLINK, "Too many links")

    with store.begin_model(manifest, "test"):
        put(store, WEIGHTS)
        put_small(store, [b"{}", b""])
        with monkeypatch.context() as failing:
            failing.setattr(files, "link", refuse)
            with snapshots.building(store.layout, manifest.model_id) as built:
                snapshots.fill(store.layout, manifest, built)
                assert tree(built) == MODEL
                assert (built / "empty").stat().st_mode & 0o777 == 0o444


def test_a_tree_under_construction_is_no_garbage_until_its_builder_dies(store):
    manifest = manifest_of(MODEL)

    def build():
        building = snapshots.building(store.layout, manifest.model_id)
        building.__enter__()
        return building

    with holding(build):
        collect(store)
        assert len(list(store.layout.snapshots.iterdir())) == 1
    collect(store)
    check_tidy(store)
