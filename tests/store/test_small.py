"""Small blobs: made durable and visible in groups, adopted from the dead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash

from modelcache.errors import StoreError
from modelcache.store import BlobState, files, receipts, small
from tests.store.processes import exit_code, fork, holding, kill
from tests.store.support import (
    blob_files,
    check_nothing_wrong_is_visible,
    content_id,
    open_store,
    put_small,
    random_bytes,
)

CONTENTS = [b"", b"{}", *(random_bytes(200 + n, n) for n in range(8))]


@pytest.fixture(params=["attribute", "file"])
def kind(request, monkeypatch):
    """Where receipts are kept."""
    if request.param == "file":
        monkeypatch.setattr(receipts, "attach", lambda *_: False)
    return request.param


def stage(store, contents=CONTENTS):
    group = store.small_blobs()
    for data in contents:
        xxh3 = xxhash.xxh3_128_digest(data)
        group.add(content_id(data), memoryview(data), xxh3=xxh3, verified="sha256")
    return group


def visible(store):
    return {path.read_bytes() for path in blob_files(store)}


def staged(store):
    folders = list(store.layout.partial.glob("small-*"))
    return [path for folder in folders for path in folder.iterdir() if path.name != "lock"]


def test_blobs_are_visible_after_the_commit_and_not_before(store, kind):
    group = stage(store)
    assert visible(store) == set()
    group.commit()
    assert visible(store) == set(CONTENTS)
    check_nothing_wrong_is_visible(store)
    sidecars = list(store.layout.blobs.glob("*/*.receipt"))
    assert len(sidecars) == (len(CONTENTS) if kind == "file" else 0)
    group.close()
    assert not list(store.layout.partial.iterdir())


def test_one_group_after_another_may_be_committed(store):
    group = stage(store, CONTENTS[:3])
    group.commit()
    group.commit()
    data = CONTENTS[4]
    group.add(content_id(data), memoryview(data), xxh3=xxhash.xxh3_128_digest(data), verified=None)
    group.commit()
    group.close()
    group.close()
    assert visible(store) == {*CONTENTS[:3], data}
    assert store.receipt(content_id(data)).verified is None


def test_a_blob_that_two_attempts_bring_is_staged_once(store):
    group = stage(store, [CONTENTS[3], CONTENTS[3]])
    assert len(staged(store)) == 1
    group.commit()
    group.close()
    assert visible(store) == {CONTENTS[3]}


@pytest.mark.parametrize(("name", "limit"), [("GROUP_BLOBS_MAX", 4), ("GROUP_BYTES_MAX", 500)])
def test_a_full_group_commits_itself(store, monkeypatch, name, limit):
    monkeypatch.setattr(small, name, limit)
    group = stage(store)
    assert len(visible(store)) >= 4
    assert len(staged(store)) < 4
    group.commit()
    group.close()
    assert visible(store) == set(CONTENTS)


def test_many_threads_may_add_to_one_group(store, monkeypatch):
    monkeypatch.setattr(small, "GROUP_BLOBS_MAX", 7)
    contents = [random_bytes(100, seed) for seed in range(100)]
    group = store.small_blobs()

    def add(data):
        xxh3 = xxhash.xxh3_128_digest(data)
        group.add(content_id(data), memoryview(data), xxh3=xxh3, verified="sha256")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, contents))
    group.commit()
    group.close()
    assert visible(store) == set(contents)
    check_nothing_wrong_is_visible(store)


def test_what_was_staged_and_not_committed_is_adopted_when_the_store_is_opened(store, kind):
    assert kind
    stage(store).close()
    assert visible(store) == set()
    again = open_store(store.layout.root)
    assert visible(again) == set(CONTENTS)
    check_nothing_wrong_is_visible(again)
    assert not list(store.layout.partial.iterdir())


def test_what_a_killed_process_had_staged_is_adopted_and_what_a_living_one_has_is_not(store, kind):
    assert kind
    with holding(lambda: stage(store)) as pid:
        open_store(store.layout.root)
        assert visible(store) == set()
        kill(pid)
        open_store(store.layout.root)
        assert visible(store) == set(CONTENTS)


def test_a_torn_blob_is_not_adopted(store, kind):
    assert kind
    assert exit_code(fork(lambda: stage(store))) == 0
    torn = next(path for path in staged(store) if path.name == content_id(CONTENTS[5]))
    torn.chmod(0o600)
    torn.write_bytes(CONTENTS[5][:-1])
    flipped = next(path for path in staged(store) if path.name == content_id(CONTENTS[6]))
    flipped.chmod(0o600)
    flipped.write_bytes(b"x" + CONTENTS[6][1:])
    open_store(store.layout.root)
    assert visible(store) == set(CONTENTS) - {CONTENTS[5], CONTENTS[6]}
    assert not list(store.layout.partial.iterdir())


def test_a_blob_whose_receipt_is_torn_is_not_adopted(store, monkeypatch):
    monkeypatch.setattr(receipts, "attach", lambda *_: False)
    stage(store, CONTENTS[:4]).close()
    torn = next(path for path in staged(store) if path.name == f"{content_id(b'{}')}.receipt")
    torn.write_bytes(torn.read_bytes()[:20])
    open_store(store.layout.root)
    assert visible(store) == {*CONTENTS[:4]} - {b"{}"}
    assert not list(store.layout.partial.iterdir())


def test_what_is_not_a_blob_is_thrown_out_of_a_dead_staging_folder(store):
    stage(store).close()
    (folder,) = store.layout.partial.glob("small-*")
    (folder / "notes.txt").write_text("?")
    open_store(store.layout.root)
    assert not folder.exists()
    assert visible(store) == set(CONTENTS)


def test_adoption_does_not_replace_a_blob_that_has_come_meanwhile(store):
    stage(store).close()
    data = CONTENTS[3]
    put_small(store, [data])
    before = store.layout.blob(content_id(data)).stat().st_ino
    open_store(store.layout.root)
    assert store.layout.blob(content_id(data)).stat().st_ino == before
    assert store.blob_state(content_id(data)) is BlobState.INTACT


def test_a_store_that_is_too_full_to_adopt_still_opens(store, monkeypatch):
    stage(store).close()
    with monkeypatch.context() as failing:
        failing.setattr(files, "sync_filesystem", _no_space)
        assert visible(open_store(store.layout.root)) == set()
    assert visible(open_store(store.layout.root)) == set(CONTENTS)


@pytest.mark.parametrize(("call", "each_max"), [("fsync_file", 64), ("sync_filesystem", 0)])
def test_a_group_whose_sync_failed_is_not_synced_again_but_thrown_away(
    store, monkeypatch, call, each_max
):
    monkeypatch.setattr(small, "SYNC_EACH_MAX", each_max)
    group = stage(store)
    with monkeypatch.context() as failing:
        failing.setattr(files, call, _no_space)
        with pytest.raises(StoreError):
            group.commit()
    group.commit()
    group.close()
    assert visible(store) == set()
    assert not list(store.layout.partial.iterdir())


def _no_space(_):
    raise OSError(28, "No space left on device")
