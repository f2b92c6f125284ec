"""What is wanted survives a restart, whatever the files have gone through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelcache.agent.desired import WANTS_MAX, DesiredFolder, DesiredModel
from modelcache.domain.manifests import ModelId
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import Want
from modelcache.errors import StoreError, UsageError
from modelcache.store import Store
from tests.agent.support import settings

REF = parse_ref("https://host/llama/?token=secret#include=*.json")
MODEL = DesiredModel(
    REF, (Want("pod/a", 60, 5.0, 9.5, "why"), Want("b", 90, 6.0)), ModelId("ab" * 32)
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(settings(tmp_path / "store").store)


def test_what_is_saved_is_loaded(store: Store):
    folder = DesiredFolder(store)
    folder.save(MODEL)
    assert list(DesiredFolder(store).load()) == [MODEL]
    folder.remove(MODEL)
    folder.remove(MODEL)
    assert list(folder.load()) == []


def test_only_the_owner_can_read_what_may_have_a_credential_in_it(store: Store):
    DesiredFolder(store).save(MODEL)
    (path,) = store.layout.desired.glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" in path.read_text()
    assert "secret" not in MODEL.ref.redacted()


DAMAGES = {
    "empty": lambda _: b"",
    "torn": lambda raw: raw[: len(raw) // 2],
    "a list": lambda _: b"[]",
    "no text": lambda _: b"\xff\xfe",
    "newer": lambda raw: raw.replace(b'"format":1', b'"format":2'),
    "no ref": lambda raw: raw.replace(b"https://host", b"nonsense://"),
    "another name's": lambda raw: raw.replace(b"https://host", b"https://other"),
    "half a want": lambda raw: json.dumps({**json.loads(raw), "wants": [{"holder": 1}]}).encode(),
    "no wants": lambda raw: json.dumps({**json.loads(raw), "wants": None}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_passed_over_and_named_and_holds_back_no_other(store: Store, damage):
    folder = DesiredFolder(store)
    other = DesiredModel(parse_ref("s3://bucket/other"), (Want("c", 1, 1.0),))
    folder.save(MODEL)
    folder.save(other)
    path = store.layout.desired / f"{MODEL.wanted_id}.json"
    path.write_bytes(damage(path.read_bytes()))
    assert sorted(folder.load(), key=str) == sorted([path, other], key=str)
    assert path.exists()


def test_a_store_that_was_made_before_there_was_such_a_folder_is_opened(tmp_path: Path):
    chosen = settings(tmp_path / "store").store
    old = Store.open(chosen)
    old.layout.desired.rmdir()
    assert list(DesiredFolder(Store.open(chosen)).load()) == []
    assert Store.open(chosen, write=False).model_ids() == []


def test_a_folder_that_cannot_be_written_is_a_store_error(store: Store):
    store.layout.desired.rmdir()
    store.layout.desired.write_bytes(b"")
    with pytest.raises(StoreError):
        DesiredFolder(store).save(MODEL)


def test_a_holder_has_one_want_and_the_highest_priority_counts():
    again = MODEL.with_want(Want("pod/a", 10, 7.0))
    assert [want.holder for want in again.wants] == ["b", "pod/a"]
    assert again.priority == 90
    assert again.without("b").priority == 10
    assert again.without(None).wants == ()
    assert again.without("nobody") == again
    assert DesiredModel(REF).priority == 0


def test_wants_expire_one_by_one():
    assert MODEL.next_expiry_s() == 9.5
    assert MODEL.expired(9.4) == MODEL
    left = MODEL.expired(9.5)
    assert [want.holder for want in left.wants] == ["b"]
    assert left.next_expiry_s() is None


def test_there_are_only_so_many_wants_for_a_model():
    crowded = DesiredModel(REF, tuple(Want(str(n), 1, 1.0) for n in range(WANTS_MAX)))
    with pytest.raises(UsageError, match="release some"):
        crowded.with_want(Want("one more", 1, 1.0))
    assert len(crowded.with_want(Want("7", 50, 1.0)).wants) == WANTS_MAX
