"""Garbage: what goes, what stays, and who is not disturbed."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from modelcache.errors import CorruptData, StoreError
from modelcache.store import WriteMode, census, receipts, room
from tests.store.processes import holding
from tests.store.support import (
    CHUNK,
    LATER_S,
    blob_files,
    check_tidy,
    collect,
    content_id,
    manifest_of,
    put,
    put_model,
    put_small,
    random_bytes,
    tree,
    wall_clock_s,
    write_chunk,
    write_missing,
    writing,
)

WEIGHTS = random_bytes(3 * CHUNK)
MODEL = {"weights": WEIGHTS, "small": b"{}"}
ORPHAN = random_bytes(2 * CHUNK, 1)


def begin(store, data=WEIGHTS):
    writer = store.writer(content_id(data), len(data), mode=WriteMode.BUFFERED)
    write_chunk(writer, data, 0)
    return writer


def age(store, model_id, age_s):
    used_s = wall_clock_s() - age_s
    os.utime(store.layout.last_used(model_id), (used_s, used_s))


def test_blobs_that_no_model_lists_go(store):
    manifest = put_model(store, MODEL)
    put(store, ORPHAN)
    put_small(store, [b"orphan"])
    report = collect(store)
    assert (report.blobs, report.freed_bytes) == (2, len(ORPHAN) + 6)
    check_tidy(store, manifest)


def test_collecting_twice_finds_nothing_more(store):
    put(store, ORPHAN)
    collect(store)
    report = collect(store)
    assert (report.blobs, report.partials, report.freed_bytes) == (0, 0, 0)


def test_a_young_partial_of_a_model_is_kept_and_an_old_one_goes(store):
    with store.begin_model(manifest_of(MODEL), "test"):
        begin(store).close()
    assert collect(store, older_than_s=2 * LATER_S).partials == 0
    assert store.partial_bytes(content_id(WEIGHTS)) == CHUNK
    report = collect(store)
    assert report.freed_bytes >= CHUNK
    assert report.evicted == [manifest_of(MODEL).model_id]
    check_tidy(store)


def test_an_old_partial_of_a_model_that_is_held_goes_alone(store):
    manifest = manifest_of(MODEL)
    with store.begin_model(manifest, "test"):
        begin(store).close()
        assert collect(store).partials == 1
        assert store.model_ids() == [manifest.model_id]


def test_a_partial_that_no_model_lists_goes_however_young(store):
    begin(store).close()
    assert collect(store, older_than_s=2 * LATER_S).partials == 1
    check_tidy(store)


def test_a_partial_with_a_living_writer_stays_whatever_its_age(store):
    with writing(store, WEIGHTS) as writer:
        collect(store)
        assert write_missing(writer, WEIGHTS) == [0, 1, 2]
        assert writer.publish(verified=None).read_bytes() == WEIGHTS


def test_a_writer_in_another_process_loses_nothing(store):
    manifest = manifest_of(MODEL)

    def pull():
        lease = store.begin_model(manifest, "test")
        put_small(store, [b"{}"])
        group = store.small_blobs()
        return lease, begin(store), group

    with holding(pull):
        collect(store)
        assert store.partial_bytes(content_id(WEIGHTS)) == CHUNK
        assert store.has_blob(content_id(b"{}"), 2)
        assert len(store.leases(manifest.model_id)) == 1
    collect(store)
    check_tidy(store)


def test_a_warm_model_is_kept_whatever_its_age(store):
    manifest = put_model(store, MODEL)
    age(store, manifest.model_id, 1e9)
    assert collect(store).evicted == []
    check_tidy(store, manifest)


def test_temporary_files_go_when_nobody_can_be_writing_them_any_more(store):
    folders = ("", "refs", "models/" + "0" * 64, "leases/" + "0" * 64, "blobs/00")
    made = []
    for folder in folders:
        path = store.layout.root / folder / ".x.json.0123.tmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        made.append(path)
    before_s = wall_clock_s() - 2 * LATER_S
    os.utime(made[1], (before_s, before_s))

    room.collect_garbage(store, now_s=wall_clock_s(), partial_older_than_s=LATER_S)
    assert made[0].exists()
    assert not made[1].exists()
    collect(store)
    check_tidy(store)


def test_receipts_without_a_blob_go_and_those_of_a_blob_to_come_stay(store, monkeypatch):
    monkeypatch.setattr(receipts, "attach", lambda *_: False)
    path = put(store, ORPHAN)
    path.unlink()
    receipt = store.layout.receipt(content_id(ORPHAN))
    with writing(store, ORPHAN):
        collect(store)
        assert receipt.exists()
    collect(store)
    assert not receipt.exists()
    check_tidy(store)


def test_what_is_left_of_a_removal_that_was_cut_goes(store):
    model_id = put_model(store, MODEL).model_id
    store.layout.manifest(model_id).unlink()
    collect(store)
    check_tidy(store)


def test_a_pin_on_a_model_of_which_nothing_is_here_goes(store):
    model_id = put_model(store, MODEL).model_id
    store.pin(model_id)
    store.layout.last_used(model_id).unlink()
    store.layout.manifest(model_id).unlink()
    (store.layout.models / model_id).rmdir()
    collect(store)
    check_tidy(store)
    assert not list(store.layout.leases.iterdir())


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_manifest_that_cannot_be_read_now_does_not_cost_its_blobs(store, monkeypatch, code):
    manifest = put_model(store, MODEL)
    other = put_model(store, {"other": ORPHAN})
    path, real = store.layout.manifest(manifest.model_id), Path.read_bytes

    def fail(self):
        if self == path:
            raise OSError(code, os.strerror(code))
        return real(self)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreError, match=r"manifest\.json"):
            collect(store)
        with pytest.raises(StoreError, match=r"manifest\.json"):
            store.remove_model(other.model_id)
    collect(store)
    check_tidy(store, manifest, other)
    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", fail)
        store.remove_model(manifest.model_id)  # what is broken for good can be removed
        collect(store)
    check_tidy(store, other)


def test_a_model_whose_manifest_is_damaged_can_be_removed_and_its_blobs_are_collected(store):
    model_id = put_model(store, MODEL).model_id
    store.layout.manifest(model_id).write_bytes(b"{")
    with pytest.raises(CorruptData):
        store.manifest(model_id)
    store.remove_model(model_id)
    collect(store)
    check_tidy(store)


def test_a_manifest_that_was_edited_is_not_believed(store):
    manifest = put_model(store, MODEL)
    other = manifest_of({"other": b"x"})
    store.layout.manifest(manifest.model_id).write_bytes(other.to_json())
    with pytest.raises(CorruptData, match="was changed"):
        store.manifest(manifest.model_id)


def test_files_deleted_by_hand_harm_nobody_else(store):
    kept = put_model(store, {"kept": ORPHAN})
    put_model(store, MODEL)
    store.layout.blob(content_id(WEIGHTS)).unlink()
    store.remove_model(manifest_of(MODEL).model_id)
    collect(store)
    check_tidy(store, kept)
    assert tree(store.layout.snapshot(kept.model_id)) == {"kept": ORPHAN}
    assert len(blob_files(store)) == 1


def test_what_is_not_ours_is_neither_counted_nor_touched(store):
    manifest = put_model(store, {"a.bin": random_bytes(3 * CHUNK), "b.json": b"{}"})
    usage = census.usage(store)
    folders = store.layout.folders()
    for folder in folders:
        (folder / ".DS_Store").write_bytes(b"mine")
        (folder / "notes").mkdir()
        (folder / "notes" / "todo").write_bytes(b"mine too")
    assert census.usage(store) == replace(usage, free_bytes=ANY)
    collect(store)
    assert store.drop_model(manifest.model_id)
    for folder in folders:
        if folder != store.layout.trash:
            assert (folder / ".DS_Store").read_bytes() == b"mine"
            assert (folder / "notes" / "todo").read_bytes() == b"mine too"
