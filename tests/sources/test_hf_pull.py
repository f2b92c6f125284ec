"""Whole pulls over hf://: from a ref to bytes that were checked."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from modelcache.agent import Engine, Snapshot
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    Cancelled,
    CredentialsExpired,
    DigestMismatch,
    OriginChanged,
)
from modelcache.faces import present
from modelcache.sources.web import asking
from tests.agent.support import random_bytes, settings, tree
from tests.servers.hub import Hub
from tests.sources.scripted import Asked, Reply

MIB = 1 << 20
FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": random_bytes(9 * MIB + 5, 1),  # three chunks
    "model-00002-of-00002.safetensors": random_bytes(5 * MIB, 2),
    "tokenizer.json": random_bytes(3 * MIB, 3),  # more than one block, and not LFS
    "vocab.txt": b"words\n" * 100,
}


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


def pull(hub: Hub, store: Path, rest: str = "", name: str = "org/name", **transfer) -> Snapshot:
    with Engine(settings(store, **{"retries_max": 2, **transfer})) as engine:
        return engine.pull(parse_ref(f"hf://{name}{rest}?endpoint={hub.url}"))


def verified(store: Path) -> dict[str, int]:
    with Engine(settings(store), write=False) as engine:
        (model,) = engine.models()
    return model.verified


def test_what_the_default_filter_left_out_is_told(hub, tmp_path):
    hub.repository().commit({**FILES, "pytorch_model.bin": random_bytes(MIB, 9)})
    snapshot = pull(hub, tmp_path)
    assert "pytorch_model.bin" not in tree(snapshot.path)
    assert snapshot.report is not None
    (note,) = snapshot.report.notes
    assert "pytorch_model.bin" in note
    assert note in present.snapshot_text(snapshot)
    assert note in present.explain_text(snapshot.report)


@pytest.mark.parametrize("small_files_redirect", [False, True])
def test_a_repository_arrives_and_every_byte_is_checked(hub, tmp_path, small_files_redirect):
    hub.repository().commit(FILES)
    hub.small_files_redirect = small_files_redirect
    assert tree(pull(hub, tmp_path).path) == FILES
    large = sum(len(FILES[name]) for name in FILES if name.endswith(".safetensors"))
    checked = verified(tmp_path)
    assert checked["sha256"] == large
    assert checked["git-sha1"] == sum(map(len, FILES.values())) - large
    assert "none" not in checked


def test_large_files_are_read_in_ranges_from_where_the_hub_leads(hub, tmp_path):
    hub.repository().commit(FILES)
    pull(hub, tmp_path)
    reads = [asked for asked in hub.cdn.asked if "range" in asked.headers]
    assert len(reads) > 4
    assert all(asked.method == "GET" for asked in hub.cdn.asked)


def test_a_mirror_without_a_cdn_serves_all_itself(hub, tmp_path):
    hub.repository().commit(FILES)
    hub.serves_large = True
    assert tree(pull(hub, tmp_path).path) == FILES
    assert not hub.cdn.asked


def test_a_mirror_without_ranges_is_read_in_one_stream_a_file(hub, tmp_path):
    hub.repository().commit(FILES)
    hub.ranges = False
    assert tree(pull(hub, tmp_path).path) == FILES


def test_a_repository_that_moved_is_followed(hub, tmp_path):
    hub.repository("org/new").commit(FILES)
    hub.repository().moved_to = "org/new"
    assert tree(pull(hub, tmp_path).path) == FILES


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_damaged_file_is_a_digest_mismatch(hub, tmp_path, name):
    hub.repository().commit(FILES)
    content = FILES[name]
    hub.damaged[name] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DigestMismatch, match=name):
        pull(hub, tmp_path)
    assert not list((tmp_path / "snapshots").iterdir())


def test_a_cut_file_is_not_taken_for_a_whole_one(hub, tmp_path):
    hub.repository().commit(FILES)
    hub.damaged["model-00002-of-00002.safetensors"] = b"short"
    with pytest.raises(OriginChanged, match="pull again"):
        pull(hub, tmp_path)


def test_addresses_that_expire_on_the_way_are_found_again(hub, tmp_path):
    hub.repository().commit(FILES)
    guard = threading.Lock()
    reads: list[Asked] = []

    def cdn(asked: Asked) -> Reply:
        with guard:
            reads.append(asked)
            if len(reads) == 4:  # some chunks are here, and others are not
                hub.expire_links()
        return Reply()

    hub.before_cdn = cdn
    assert tree(pull(hub, tmp_path).path) == FILES
    assert len({asked.path for asked in reads}) > 2


def test_an_address_that_is_refused_for_good_ends_the_pull_without_telling_it(hub, tmp_path):
    hub.repository().commit({"model.safetensors": b"weights"})
    hub.before_cdn = lambda _: Reply(403)
    with pytest.raises(CredentialsExpired) as caught:
        pull(hub, tmp_path)
    assert "model.safetensors" in caught.value.message
    assert "secret-" not in caught.value.message


def test_a_pull_that_was_stopped_goes_on_where_it_was(hub, tmp_path):
    hub.repository().commit(FILES)
    cancel = threading.Event()
    guard = threading.Lock()
    reads: list[Asked] = []
    stopped = threading.Event()

    def cdn(asked: Asked) -> Reply:
        with guard:
            reads.append(asked)
            if len(reads) == 4:
                cancel.set()
        if len(reads) > 4:
            stopped.wait(30.0)  # or all might be here before the pull looks at `cancel`
        return Reply()

    hub.before_cdn = cdn
    with Engine(settings(tmp_path, connections_start=1, connections_max=1)) as engine:
        ref = parse_ref(f"hf://org/name?endpoint={hub.url}")
        with pytest.raises(Cancelled):
            engine.pull(ref, cancel=cancel)
        stopped.set()
        kept = sum(model.present_bytes for model in engine.models())
        hub.before_cdn = None
        snapshot = engine.pull(ref)
    assert kept > 0
    assert snapshot.fetched_bytes <= sum(map(len, FILES.values())) - kept
    assert tree(snapshot.path) == FILES


def test_another_revision_fetches_only_what_differs(hub, tmp_path):
    repository = hub.repository()
    repository.commit(FILES, "v1")
    changed = {
        **FILES,
        "config.json": b'{"changed": true}',
        "model-00002-of-00002.safetensors": random_bytes(5 * MIB, 9),
    }
    repository.commit(changed, "v2")
    first = pull(hub, tmp_path, "@v1")
    second = pull(hub, tmp_path, "@v2")
    assert tree(second.path) == changed
    assert tree(first.path) == FILES
    differing = [name for name in FILES if FILES[name] != changed[name]]
    assert second.fetched_bytes == sum(len(changed[name]) for name in differing)


def test_the_same_files_in_another_repository_are_not_fetched_again(hub, tmp_path):
    hub.repository("org/one").commit(FILES)
    hub.repository("org/two").commit(FILES)
    first = pull(hub, tmp_path, name="org/one")
    second = pull(hub, tmp_path, name="org/two")
    assert second.model_id == first.model_id
    assert second.fetched_bytes == 0


def test_what_was_damaged_on_the_disk_is_fetched_from_the_hub_again(hub, tmp_path):
    hub.repository().commit(FILES)
    path = pull(hub, tmp_path).path / "model-00001-of-00002.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"damage")
    with Engine(settings(tmp_path)) as engine:
        (result,) = engine.verify()
    assert result.repaired
    assert path.read_bytes() == FILES[path.name]


def test_the_token_never_leaves_the_hub(hub, tmp_path, monkeypatch):
    hub.repository().commit(FILES)
    hub.repository().private = True
    hub.readers = {"hf_secret": {"org/name"}}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert tree(pull(hub, tmp_path).path) == FILES
    assert hub.cdn.asked
    assert all("authorization" not in asked.headers for asked in hub.cdn.asked)
    assert all("hf_secret" not in str(asked) for asked in hub.cdn.asked)
    assert all(asked.headers["authorization"] == "Bearer hf_secret" for asked in hub.api.asked)
    kept = [path.read_bytes() for path in tmp_path.rglob("*.json")]
    assert not any(b"hf_secret" in text or b"secret-" in text for text in kept)
