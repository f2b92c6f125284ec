"""What a store knows of its models: manifests, refs, reports, last use."""

from __future__ import annotations

import json

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.errors import InvalidRef, NotInStore, UsageError
from tests.store.support import collect, manifest_of, put_model, random_bytes, wall_clock_s

MODEL = {"weights": random_bytes(9000)}
REF = parse_ref("s3://bucket/model")


@pytest.fixture
def model_id(store):
    return put_model(store, MODEL).model_id


def test_a_model_is_found_by_its_id_a_prefix_and_its_ref(store, model_id):
    store.remember_ref(REF, model_id, 5.0)
    for what in (model_id, model_id[:4], model_id[:12].upper(), "s3://bucket/model"):
        assert store.find(what) == model_id
    assert store.recall_ref(REF) == (model_id, 5.0)
    assert store.refs() == {model_id: ["s3://bucket/model"]}


@pytest.mark.parametrize("what", ["", "abc", "xyzw", "../..", "model"])
def test_what_is_neither_id_nor_ref_is_a_mistake(store, what):
    with pytest.raises(UsageError, match="neither a ref nor a model id"):
        store.find(what)


def test_a_scheme_that_nobody_knows_is_a_mistake(store):
    with pytest.raises(InvalidRef):
        store.find("gopher://x/y")


def test_what_was_never_pulled_is_not_in_the_store(store, model_id):
    other = "0000" if not model_id.startswith("0000") else "1111"
    for what in (other, "s3://bucket/other"):
        with pytest.raises(NotInStore):
            store.find(what)


def test_a_prefix_of_several_models_is_refused(store, model_id):
    twin = model_id[:8] + "0" * 56
    (store.layout.models / twin).mkdir()
    with pytest.raises(UsageError, match="means 2 models"):
        store.find(model_id[:8])


def test_a_ref_leads_to_what_it_meant_last(store, model_id):
    other = put_model(store, {"other": b"x"}).model_id
    store.remember_ref(REF, model_id, 1.0)
    store.remember_ref(REF, other, 2.0)
    assert store.recall_ref(REF) == (other, 2.0)
    assert store.refs() == {other: ["s3://bucket/model"]}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"ref":1}', b"\xff"])
def test_a_ref_that_cannot_be_read_is_as_if_never_written(store, model_id, damage):
    store.remember_ref(REF, model_id, 1.0)
    store.layout.ref(REF).write_bytes(damage)
    assert store.recall_ref(REF) is None
    assert store.refs() == {}
    store.remove_model(model_id)


def test_refs_go_with_their_model(store, model_id):
    store.remember_ref(REF, model_id, 1.0)
    store.remove_model(model_id)
    assert store.recall_ref(REF) is None
    store.remember_ref(REF, model_id, 1.0)  # a crash may leave one without a model
    collect(store)
    assert store.recall_ref(REF) is None


def test_refs_are_shown_without_what_only_their_user_should_see(store, model_id):
    ref = parse_ref("https://host/model.gguf?token=secret")
    store.remember_ref(ref, model_id, 1.0)
    assert "secret" not in json.dumps(store.refs())
    assert store.layout.ref(ref).stat().st_mode & 0o077 == 0


def test_a_report_is_kept_as_long_as_its_model(store, model_id):
    assert store.report(model_id) is None
    store.save_report(model_id, {"transfer_s": 1.5})
    assert store.report(model_id) == {"transfer_s": 1.5}
    store.layout.report(model_id).write_bytes(b"{")
    assert store.report(model_id) is None
    store.remove_model(model_id)
    store.save_report(model_id, {"transfer_s": 1.5})  # removed by force meanwhile: no matter
    assert store.model_ids() == []


def test_use_is_noted(store, model_id):
    assert abs(store.last_used_s(model_id) - wall_clock_s()) < 60
    assert store.last_used_s(manifest_of({"x": b"x"}).model_id) == 0.0


def test_strangers_among_the_models_are_not_models(store, model_id):
    (store.layout.models / "notes").mkdir()
    assert store.model_ids() == [model_id]


def test_a_model_of_the_same_files_at_another_origin_is_the_same_model(store, model_id):
    again = put_model(store, MODEL, origin="s3://mirror/model")
    assert again.model_id == model_id
    assert store.manifest(model_id).origin == "s3://mirror/model"
    assert store.model_ids() == [model_id]
