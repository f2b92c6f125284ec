"""Leases: reasons not to evict, some of which die with their holder."""

from __future__ import annotations

import os

import pytest

from modelcache.errors import Leased, NotInStore
from modelcache.store import LeaseInfo
from modelcache.store.leases import PULL
from tests.store.processes import holding, kill
from tests.store.support import check_tidy, collect, manifest_of, put_model, random_bytes

MODEL = {"weights": random_bytes(9000), "small": b"{}"}


@pytest.fixture
def model_id(store):
    return put_model(store, MODEL).model_id


def test_a_model_is_held_until_the_lease_is_released(store, model_id):
    with store.hold(model_id, "mount", "pod-7") as lease:
        assert store.leases(model_id) == [LeaseInfo("mount", "pod-7", os.getpid())]
    assert store.leases(model_id) == []
    lease.release()


def test_a_pull_holds_its_model_from_the_beginning(store):
    manifest = manifest_of(MODEL)
    with store.begin_model(manifest, "pull of it"):
        assert store.leases(manifest.model_id) == [LeaseInfo(PULL, "pull of it", os.getpid())]
        assert store.manifest(manifest.model_id) == manifest
        assert store.snapshot_path(manifest.model_id) is None


def test_a_model_that_is_not_here_cannot_be_held(store):
    with pytest.raises(NotInStore):
        store.hold(manifest_of(MODEL).model_id, "mount", "")
    assert not list(store.layout.leases.iterdir())


def test_a_lease_dies_with_the_process_that_holds_it(store, model_id):
    with holding(lambda: store.hold(model_id, "mount", "pod-7")) as pid:
        assert store.leases(model_id) == [LeaseInfo("mount", "pod-7", pid)]
        with pytest.raises(Leased):
            store.remove_model(model_id)
        kill(pid)
        assert store.leases(model_id) == []
        assert store.remove_model(model_id) > 0
    check_tidy(store)


def test_what_dead_holders_left_is_garbage_and_what_living_ones_hold_is_not(store, model_id):
    with store.hold(model_id, "mount", "alive"):
        with holding(lambda: store.hold(model_id, "mount", "dying")):
            pass
        assert collect(store).leases == 1
        assert [lease.note for lease in store.leases(model_id)] == ["alive"]
    collect(store)
    assert not list(store.layout.leases.iterdir())


def test_a_pin_outlives_everybody_until_it_is_removed(store, model_id):
    store.pin(model_id, "production")
    store.pin(model_id, "production")
    collect(store)
    assert store.leases(model_id) == [LeaseInfo("pin", "production", 0)]
    with pytest.raises(Leased):
        store.remove_model(model_id)
    assert store.unpin(model_id)
    assert not store.unpin(model_id)
    assert store.remove_model(model_id) > 0
    collect(store)
    check_tidy(store)
    assert not list(store.layout.leases.iterdir())


def test_a_refusal_names_every_lease(store, model_id):
    store.pin(model_id, "production")
    with store.hold(model_id, "mount", "pod-7"), pytest.raises(Leased) as caught:
        store.remove_model(model_id)
    assert "mount pod-7" in caught.value.message
    assert "pin production" in caught.value.message
    assert "--force" in caught.value.message
    assert store.snapshot_path(model_id) is not None


def test_force_removes_what_is_leased(store, model_id):
    store.pin(model_id)
    lease = store.hold(model_id, "mount", "pod-7")
    assert store.remove_model(model_id, force=True) == sum(map(len, MODEL.values()))
    check_tidy(store)
    assert store.leases(model_id) == []
    lease.release()  # its holder need not know


def test_a_pin_that_cannot_be_read_protects_all_the_same(store, model_id):
    store.pin(model_id)
    (store.layout.leases / model_id / "pin.json").write_bytes(b"\xff")
    assert [lease.kind for lease in store.leases(model_id)] == ["unreadable"]
    with pytest.raises(Leased):
        store.remove_model(model_id)


def test_a_lease_cut_in_the_middle_of_its_beginning_protects_nothing(store, model_id):
    folder = store.layout.leases / model_id
    folder.mkdir(exist_ok=True)
    (folder / "mount-000000000000.json").touch()
    assert store.leases(model_id) == []
    assert collect(store).leases == 1
