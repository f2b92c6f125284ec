"""Making room: the quota and its marks, the disk, and who goes."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from modelcache.domain.manifests import ModelId
from modelcache.errors import StoreFull
from modelcache.store import Store, room
from tests.store.processes import holding
from tests.store.support import (
    CHUNK,
    LATER_S,
    check_tidy,
    collect,
    content_id,
    manifest_of,
    open_store,
    put,
    put_model,
    random_bytes,
    wall_clock_s,
    write_chunk,
    writing,
)

KIB = 1024
QUOTA = 100 * KIB
NONE = ModelId("")


def content(name: str, size_bytes: int, **more: bytes) -> dict[str, bytes]:
    return {"weights": random_bytes(size_bytes, int.from_bytes(name.encode())), **more}


def put_used(store: Store, name: str, size_bytes: int, *, age_s: float, **more: bytes) -> ModelId:
    """A model that was last used `age_s` ago."""
    model_id = put_model(store, content(name, size_bytes, **more)).model_id
    used_s = wall_clock_s() - age_s
    os.utime(store.layout.last_used(model_id), (used_s, used_s))
    return model_id


def reserve(store: Store, need_bytes: int, keep: ModelId = NONE) -> list[ModelId]:
    return room.reserve(store, need_bytes, keep=keep, now_s=wall_clock_s())


@pytest.fixture
def small_store(tmp_path):
    """A store with a quota of 100 KiB, to be kept under 90 and cleared down to 60."""
    marks = {"high_watermark": 0.9, "low_watermark": 0.6}
    return open_store(tmp_path / "store", quota_bytes=QUOTA, **marks)


def test_below_the_high_mark_nobody_goes(small_store):
    put_used(small_store, "a", 50 * KIB, age_s=1000)
    assert reserve(small_store, 40 * KIB) == []


def test_above_the_high_mark_the_oldest_go_until_the_low_mark(small_store):
    old = put_used(small_store, "a", 20 * KIB, age_s=3000)
    middle = put_used(small_store, "b", 20 * KIB, age_s=2000)
    put_used(small_store, "c", 20 * KIB, age_s=1000)
    assert reserve(small_store, 31 * KIB) == [old, middle]
    assert room.usage(small_store).blobs_bytes == 20 * KIB
    assert not list(small_store.layout.trash.iterdir())


def test_leased_models_stay_even_if_the_low_mark_is_missed(small_store):
    old = put_used(small_store, "a", 40 * KIB, age_s=3000)
    new = put_used(small_store, "b", 20 * KIB, age_s=1000)
    small_store.pin(old)
    assert reserve(small_store, 35 * KIB) == [new]
    assert small_store.snapshot_path(old) is not None


def test_a_model_mounted_by_another_process_stays(small_store):
    old = put_used(small_store, "a", 40 * KIB, age_s=3000)
    with holding(lambda: small_store.hold(old, "mount", "pod")):
        with pytest.raises(StoreFull):
            reserve(small_store, 70 * KIB)
        assert small_store.snapshot_path(old) is not None
    assert reserve(small_store, 70 * KIB) == [old]


def test_when_room_cannot_be_made_nobody_goes_in_vain(small_store):
    kept = put_used(small_store, "a", 60 * KIB, age_s=3000)
    small_store.pin(kept)
    other = put_used(small_store, "b", 20 * KIB, age_s=1000)
    with pytest.raises(StoreFull, match="could be evicted"):
        reserve(small_store, 50 * KIB)
    assert small_store.snapshot_path(other) is not None


def test_what_is_larger_than_the_quota_is_refused_at_once(small_store):
    other = put_used(small_store, "b", 20 * KIB, age_s=1000)
    with pytest.raises(StoreFull, match="more than the quota"):
        reserve(small_store, QUOTA + 1)
    assert small_store.snapshot_path(other) is not None


def test_the_model_that_room_is_made_for_stays_and_so_do_its_blobs(small_store):
    shared = random_bytes(30 * KIB, 7)
    other = put_used(small_store, "a", 30 * KIB, age_s=3000, shared=shared)
    mine = manifest_of({"shared": shared, **content("b", 30 * KIB)})
    with small_store.begin_model(mine, "test"):
        assert reserve(small_store, 31 * KIB, keep=mine.model_id) == [other]
        assert small_store.has_blob(content_id(shared), len(shared))


def test_a_blob_of_two_models_goes_with_the_last(small_store):
    shared = random_bytes(30 * KIB, 7)
    first = put_used(small_store, "a", 10 * KIB, age_s=3000, shared=shared)
    second = put_used(small_store, "b", 10 * KIB, age_s=10, shared=shared)
    assert small_store.remove_model(first) == 10 * KIB
    assert small_store.has_blob(content_id(shared), len(shared))
    assert small_store.remove_model(second) == 40 * KIB
    check_tidy(small_store)


def test_usage_tells_what_removing_a_model_would_free(small_store):
    shared = random_bytes(30 * KIB, 7)
    first = put_used(small_store, "a", 10 * KIB, age_s=1, shared=shared)
    put_used(small_store, "b", 20 * KIB, age_s=1, shared=shared)
    usage = room.usage(small_store)
    assert usage.models[first] == (40 * KIB, 10 * KIB)
    assert (usage.blobs, usage.blobs_bytes) == (3, 60 * KIB)
    assert usage.quota_bytes == QUOTA


def test_orphans_go_before_any_model(small_store):
    kept = put_used(small_store, "a", 40 * KIB, age_s=3000)
    put(small_store, random_bytes(40 * KIB, 99))
    assert reserve(small_store, 20 * KIB) == []
    assert small_store.snapshot_path(kept) is not None
    assert room.usage(small_store).blobs_bytes == 40 * KIB


def test_orphans_that_make_room_enough_cost_no_model(small_store):
    """Below the high mark again, though not at the low one: nothing else has to go."""
    kept = put_used(small_store, "a", 66 * KIB, age_s=3000)
    put(small_store, random_bytes(16 * KIB, 99))
    assert reserve(small_store, 20 * KIB) == []
    assert small_store.snapshot_path(kept) is not None


def test_what_other_pulls_have_yet_to_fetch_is_spoken_for(small_store):
    coming = manifest_of(content("a", 60 * KIB))
    with small_store.begin_model(coming, "test"):
        with pytest.raises(StoreFull):
            reserve(small_store, 50 * KIB)
        assert reserve(small_store, 50 * KIB, keep=coming.model_id) == []
    assert reserve(small_store, 50 * KIB) == []


def test_a_partial_counts_with_all_its_room(small_store):
    data = random_bytes(60 * KIB)
    manifest = manifest_of({"w": data})
    with small_store.begin_model(manifest, "test"), writing(small_store, data):
        refused = pytest.raises(StoreFull)
        with refused:
            reserve(small_store, 50 * KIB)


def test_a_model_that_is_quick_to_fetch_again_goes_before_an_older_one(small_store):
    slow = put_used(small_store, "a", 30 * KIB, age_s=2000)
    quick = put_used(small_store, "b", 30 * KIB, age_s=1000)
    small_store.save_report(slow, {"transfer_s": 100.0, "fetched_bytes": 30 * KIB})
    small_store.save_report(quick, {"transfer_s": 1.0, "fetched_bytes": 30 * KIB})
    assert reserve(small_store, 40 * KIB) == [quick, slow]
    put_used(small_store, "a", 30 * KIB, age_s=2000)
    quick = put_used(small_store, "b", 30 * KIB, age_s=1000)
    small_store.save_report(slow, {"transfer_s": 100.0, "fetched_bytes": 30 * KIB})
    small_store.save_report(quick, {"transfer_s": 1.0, "fetched_bytes": 30 * KIB})
    assert reserve(small_store, 32 * KIB) == [quick, slow]


def test_collecting_clears_down_to_the_low_mark_too(small_store):
    old = put_used(small_store, "a", 40 * KIB, age_s=3000)
    put_used(small_store, "b", 55 * KIB, age_s=1000)
    report = room.collect_garbage(small_store, now_s=wall_clock_s(), partial_older_than_s=LATER_S)
    assert report.evicted == [old]


# The disk


@pytest.fixture
def free_bytes(monkeypatch):
    """What the filesystem says is free, to be set by the test."""
    disk = SimpleNamespace(f_bavail=0, f_blocks=1 << 20, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)

    def set_free(size_bytes: int) -> None:
        disk.f_bavail = size_bytes

    return set_free


def test_what_does_not_fit_the_disk_is_refused_before_anything_is_fetched(store, free_bytes):
    free_bytes(50 * KIB)
    assert reserve(store, 50 * KIB) == []
    with pytest.raises(StoreFull, match=r"0\.00 GB more room is needed"):
        reserve(store, 50 * KIB + 1)


def test_a_reserve_is_left_free_on_the_disk(tmp_path, free_bytes):
    store = open_store(tmp_path / "store", reserve_bytes=10 * KIB)
    free_bytes(50 * KIB)
    assert reserve(store, 40 * KIB) == []
    with pytest.raises(StoreFull):
        reserve(store, 40 * KIB + 1)


def test_for_lack_of_disk_only_as_many_go_as_must(store, free_bytes):
    old = put_used(store, "a", 20 * KIB, age_s=3000)
    put_used(store, "b", 20 * KIB, age_s=1000)
    free_bytes(30 * KIB)
    assert reserve(store, 45 * KIB) == [old]


def test_room_that_a_partial_has_taken_already_is_not_wanted_twice(store, free_bytes):
    data = random_bytes(8 * CHUNK)
    with store.begin_model(manifest_of({"w": data}), "test"), writing(store, data) as writer:
        write_chunk(writer, data, 0)
        free_bytes(10 * KIB)
        assert reserve(store, 10 * KIB) == []


@pytest.fixture
def disk_of_100_kib(store, monkeypatch):
    """A disk on which there is this store only."""

    def status(_: object) -> SimpleNamespace:
        used = sum(path.stat().st_size for path in store.layout.root.rglob("*") if path.is_file())
        return SimpleNamespace(f_bavail=100 * KIB - used, f_blocks=100 * KIB, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", status)


@pytest.mark.usefixtures("disk_of_100_kib")
def test_what_a_killed_process_left_in_the_trash_takes_no_room(store):
    (store.layout.trash / "blob").write_bytes(bytes(60 * KIB))
    assert reserve(store, 80 * KIB) == []


@pytest.mark.usefixtures("disk_of_100_kib")
def test_orphans_give_their_room_back_even_when_it_is_not_enough(store):
    put(store, random_bytes(60 * KIB))
    with pytest.raises(StoreFull):
        reserve(store, 110 * KIB)
    assert not list(store.layout.trash.iterdir())
    assert reserve(store, 80 * KIB) == []


def test_collecting_a_store_without_quota_evicts_nobody(store):
    manifest = put_model(store, content("a", 20 * KIB))
    assert collect(store).evicted == []
    check_tidy(store, manifest)
