"""Disks that are really full or really read-only."""

from __future__ import annotations

import os
import subprocess

import pytest

from modelcache.errors import StoreError, StoreFull, StoreReadOnly
from modelcache.store import Store, room
from tests.store.mounts import mounted, tmpfs
from tests.store.support import (
    CHUNK,
    check_nothing_wrong_is_visible,
    check_tidy,
    collect,
    manifest_of,
    open_store,
    put,
    put_model,
    put_small,
    random_bytes,
    settings,
    tree,
    wall_clock_s,
    write_chunk,
    write_missing,
    writing,
)

pytestmark = pytest.mark.kernel
MIB = 1 << 20
MODEL = {"weights": random_bytes(2 * MIB), "small": b"{}"}


@pytest.fixture
def disk(tmp_path):
    """Four MiB."""
    with tmpfs(tmp_path / "disk", 4 * MIB) as found:
        yield found


def fill(disk):
    """Take every free byte."""
    status = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))


def test_a_blob_that_does_not_fit_is_refused_before_its_first_byte(disk):
    store = open_store(disk / "store")
    manifest = put_model(store, MODEL)
    with pytest.raises(StoreFull, match="no space left"):
        store.writer(manifest_of({"x": b"x"}).files[0].blob, 3 * MIB, mode="buffered")
    assert not list(store.layout.partial.iterdir())
    check_tidy(store, manifest)


def test_room_is_looked_for_on_the_disk_as_it_is(disk):
    store = open_store(disk / "store")
    manifest = put_model(store, MODEL)
    now_s = wall_clock_s()
    assert room.reserve(store, MIB, keep=manifest.model_id, now_s=now_s) == []
    with pytest.raises(StoreFull):
        room.reserve(store, 3 * MIB, keep=manifest.model_id, now_s=now_s)
    evicted = room.reserve(store, 3 * MIB, keep=manifest_of({}).model_id, now_s=now_s)
    assert evicted == [manifest.model_id]


def test_a_disk_that_fills_up_costs_nothing_that_was_finished(disk):
    store = open_store(disk / "store")
    kept = put_model(store, MODEL)
    data = random_bytes(4 * CHUNK, 1)
    manifest = manifest_of({"weights": data, "small": b"[]"})
    with store.begin_model(manifest, "test"):
        with writing(store, data) as writer:
            write_chunk(writer, data, 0)
            fill(disk)
            write_chunk(writer, data, 1)  # its room is reserved, and the journal's page has some
        for refused in (
            lambda: put_small(store, [random_bytes(5000, 2)]),
            lambda: put(store, random_bytes(5000, 3)),
            lambda: store.pin(kept.model_id),
        ):
            with pytest.raises(StoreFull):
                refused()
        check_nothing_wrong_is_visible(store)
        assert tree(store.layout.snapshot(kept.model_id)) == MODEL
        (disk / "filler").unlink()
        with writing(store, data) as writer:
            assert write_missing(writer, data) == [2, 3]
            writer.publish(verified=None)
        put_small(store, [b"[]"])
        store.add_model(manifest)
    collect(store)
    check_tidy(store, kept, manifest)


def test_a_full_store_opens_and_models_can_be_removed_from_it(disk):
    store = open_store(disk / "store")
    manifest = put_model(store, MODEL)
    fill(disk)
    again = open_store(disk / "store")
    assert again.remove_model(manifest.model_id) == sum(map(len, MODEL.values()))
    check_tidy(again)


@pytest.fixture
def read_only(disk):
    """A store with a model, on a disk that cannot be written any more."""
    store = open_store(disk / "store")
    with writing(store, MODEL["weights"]):
        pass
    put_model(store, MODEL)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return store


def check_read_only(store):
    """Everything can be looked at, nothing be changed, and the error says why."""
    manifest = manifest_of(MODEL)
    model_id = manifest.model_id
    with pytest.raises(StoreReadOnly):
        open_store(store.layout.root)
    reading = Store.open(settings(store.layout.root), write=False)
    assert tree(reading.snapshot_path(model_id)) == MODEL
    assert reading.model_ids() == [model_id]
    assert reading.manifest(model_id) == manifest
    assert reading.find(model_id[:8]) == model_id
    assert reading.leases(model_id) == []
    assert room.usage(reading).blobs == 2
    assert not reading.is_busy(manifest.files[0].blob)
    check_nothing_wrong_is_visible(reading)
    reading.touch(model_id)
    store.touch(model_id)
    for refused in (
        lambda: store.pin(model_id),
        lambda: store.remove_model(model_id),
        lambda: store.begin_model(manifest, "test"),
        lambda: store.hold(model_id, "mount", ""),
        lambda: store.save_report(model_id, {}),
        lambda: put(store, b"more"),
        lambda: put_small(store, [b"more"]),
        lambda: collect(store),
    ):
        with pytest.raises(StoreError) as caught:
            refused()
        assert type(caught.value) is StoreReadOnly, caught.value
    check_nothing_wrong_is_visible(reading)


def test_a_store_whose_disk_became_read_only_can_still_be_read(read_only):
    check_read_only(read_only)


def test_a_store_that_is_mounted_read_only_can_be_read(tmp_path):
    store = open_store(tmp_path / "real")
    put_model(store, MODEL)
    with mounted(tmp_path / "view", "--bind", tmp_path / "real") as view:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
        check_read_only(Store(type(store.layout)(view), settings(view), writable=True))
