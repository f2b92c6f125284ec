"""Blobs into a registry that breaks off, forgets, limits and lies."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from modelcache.config import OciSettings, TransferSettings
from modelcache.errors import (
    Cancelled,
    DigestMismatch,
    Forbidden,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
)
from modelcache.sources.oci import registry as registries
from modelcache.sources.oci import uploads
from modelcache.sources.oci.outgoing import LayerReader, Outgoing, tar_around
from modelcache.sources.oci.registry import Registry
from modelcache.sources.oci.uploads import BlobPusher
from tests.agent.support import random_bytes
from tests.servers.pliant_registry import Asked, Mishap, PliantRegistry
from tests.sources.token_server import TokenServer

MIB = 1 << 20
CONTENT = random_bytes(5 * MIB + 7, 1)
DIGEST = f"sha256:{sha256(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "BACKOFF_S", 0.0)
    monkeypatch.setattr(uploads, "BACKOFF_S", 0.0)


@pytest.fixture
def pliant() -> Iterator[PliantRegistry]:
    with PliantRegistry() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def pusher(pliant: PliantRegistry) -> Iterator[BlobPusher]:
    registry = Registry(pliant.name, OciSettings(), TransferSettings())
    yield BlobPusher(registry, "x/model", chunk_bytes=0, stop=threading.Event())
    registry.close()


def layer(path: Path, **more) -> Outgoing:
    return Outgoing("weights.bin", "application/x", path, path.stat().st_size, **more)


def send(pusher: BlobPusher, path: Path, digest: str | None = None) -> str:
    with LayerReader(layer(path)) as reader:
        return pusher.send(reader, digest)


def once(method: str, mishap: Mishap, *, number: int = 0):
    """A plan: this for the request of that number among those of its method."""

    def plan(asked: Asked) -> Mishap | None:
        return mishap if asked.method == method and asked.number == number else None

    return plan


def test_an_unknown_digest_is_found_while_the_bytes_are_sent_once(pliant, pusher, file):
    assert send(pusher, file) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}
    assert pliant.received_bytes == len(CONTENT)
    assert [asked.method for asked in pliant.asked] == ["POST", "GET", "PATCH", "PUT"]


def test_a_known_digest_takes_one_request_with_a_body(pliant, pusher, file):
    assert send(pusher, file, DIGEST) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}
    assert not pliant.methods("PATCH")


@pytest.mark.parametrize("known", [None, DIGEST])
def test_a_broken_connection_is_taken_up_where_it_broke(pliant, pusher, file, known):
    pliant.plan = once("PUT" if known else "PATCH", Mishap(cut_at=2 * MIB + 3))
    assert send(pusher, file, known) == DIGEST
    assert pliant.blobs[DIGEST] == CONTENT
    assert pliant.received_bytes == len(CONTENT)
    resumed = pliant.methods("PATCH")[-1]
    assert resumed.headers["content-range"] == f"{2 * MIB + 3}-{len(CONTENT) - 1}"


def test_each_gain_renews_the_patience(pliant, pusher, file):
    """More breaks than are borne in a row, each a little further."""
    breaks = 2 * uploads.RETRIES_MAX

    def plan(asked: Asked) -> Mishap | None:
        breaking = asked.method == "PATCH" and asked.number < breaks
        return Mishap(cut_at=100_000) if breaking else None

    pliant.plan = plan
    assert send(pusher, file) == DIGEST
    assert pliant.received_bytes == len(CONTENT)


def test_a_lost_session_is_begun_anew(pliant, pusher, file):
    def plan(asked: Asked) -> Mishap | None:
        if asked.method == "PATCH" and asked.number == 0:
            return Mishap(cut_at=MIB)
        lost = asked.method == "GET" and "/uploads/" in asked.path
        return Mishap(lose=True) if lost else None

    pliant.plan = plan
    assert send(pusher, file) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}
    assert len(pliant.methods("POST")) == 2


def test_a_session_lost_before_the_last_request_is_begun_anew(pliant, pusher, file):
    pliant.plan = once("PUT", Mishap(lose=True))
    assert send(pusher, file) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}


def test_an_answer_that_got_lost_is_not_a_blob_that_did(pliant, pusher, file):
    pliant.plan = once("PUT", Mishap(mute=True))
    assert send(pusher, file) == DIGEST
    assert pliant.received_bytes == len(CONTENT)
    assert pliant.methods("HEAD", DIGEST)


def test_a_registry_that_stays_broken_is_given_up(pliant, pusher, file):
    pliant.plan = lambda asked: Mishap(cut_at=1) if asked.method == "PATCH" else None
    with pytest.raises(SourceUnavailable, match=pliant.name):
        send(pusher, file)
    assert len(pliant.methods("PATCH")) == uploads.RETRIES_MAX + 1


def test_damage_on_the_way_is_found_and_sent_again(pliant, pusher, file):
    pliant.plan = once("PATCH", Mishap(flip=True))
    assert send(pusher, file) == DIGEST
    assert pliant.blobs[DIGEST] == CONTENT


def test_damage_that_stays_is_a_mismatch(pliant, pusher, file):
    pliant.plan = lambda asked: Mishap(flip=True) if asked.method in {"PATCH", "PUT"} else None
    with pytest.raises(DigestMismatch, match="other bytes"):
        send(pusher, file)
    assert not pliant.blobs


def test_a_remembered_digest_that_is_wrong_is_replaced(pliant, pusher, file):
    assert send(pusher, file, "sha256:" + 64 * "a") == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}


def test_another_digest_in_the_answer_is_refused(pliant, pusher, file):
    pliant.plan = once("PUT", Mishap(alter={"Docker-Content-Digest": "sha256:" + 64 * "b"}))
    with pytest.raises(DigestMismatch, match="changes what it is given"):
        send(pusher, file)


@pytest.mark.parametrize("relative", [True, False])
def test_chunks_follow_each_other(pliant, file, relative):
    pliant.relative = relative
    registry = Registry(pliant.name, OciSettings(), TransferSettings())
    pusher = BlobPusher(registry, "x/model", chunk_bytes=2 * MIB, stop=threading.Event())
    assert send(pusher, file) == DIGEST
    spans = [asked.headers["content-range"] for asked in pliant.methods("PATCH")]
    assert spans == [f"0-{2 * MIB - 1}", f"{2 * MIB}-{4 * MIB - 1}", f"{4 * MIB}-{5 * MIB + 6}"]
    registry.close()


def test_chunks_are_not_smaller_than_the_registry_wants(pliant, file):
    pliant.chunk_min_bytes = 3 * MIB
    registry = Registry(pliant.name, OciSettings(), TransferSettings())
    pusher = BlobPusher(registry, "x/model", chunk_bytes=MIB, stop=threading.Event())
    assert send(pusher, file) == DIGEST
    assert len(pliant.methods("PATCH")) == 2
    registry.close()


@pytest.mark.parametrize("known", [None, DIGEST])
def test_a_limit_on_bodies_is_met_with_chunks(pliant, pusher, file, known, monkeypatch):
    monkeypatch.setattr(uploads, "FALLBACK_CHUNK_BYTES", 2 * MIB)
    pliant.body_bytes_max = 3 * MIB
    assert send(pusher, file, known) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}


def test_a_limit_below_that_names_the_file_and_what_to_do(pliant, pusher, file):
    pliant.body_bytes_max = 1000
    with pytest.raises(SourceRefused, match=r"weights\.bin .*--chunk-size"):
        send(pusher, file)


def test_a_registry_that_miscounts_is_asked_where_it_stands(pliant, pusher, file):
    pliant.plan = once("PATCH", Mishap(alter={"Range": f"0-{4 * MIB - 1}"}))
    assert send(pusher, file) == DIGEST
    assert pliant.blobs[DIGEST] == CONTENT
    assert pliant.received_bytes == len(CONTENT)


@pytest.mark.parametrize("claimed", ["0-0", f"0-{6 * MIB}"])
def test_a_registry_that_claims_what_cannot_be_gets_all_again(pliant, pusher, file, claimed):
    pliant.plan = once("PATCH", Mishap(alter={"Range": claimed}))
    assert send(pusher, file) == DIGEST
    assert pliant.blobs == {DIGEST: CONTENT}


def test_a_401_that_asks_for_nothing_is_an_error_of_ours(pliant, pusher, file):
    pliant.plan = lambda asked: Mishap(status=401) if asked.method == "POST" else None
    with pytest.raises(SourceRefused, match="without saying how to log in"):
        send(pusher, file)


def test_a_token_that_grows_old_in_the_middle_is_renewed(pliant, pusher, file, tmp_path):
    with TokenServer(tmp_path / "tokens") as tokens:
        realm = tokens.auth().realm
        challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
        refused = Mishap(status=401, code="UNAUTHORIZED", headers=challenge)

        def plan(asked: Asked) -> Mishap | None:
            old = asked.method == "PATCH" and asked.number == 0
            return refused if old or "authorization" not in asked.headers else None

        pliant.plan = plan
        assert send(pusher, file) == DIGEST
        assert tokens.scopes() == 2 * [["repository:x/model:pull,push"]]
    assert pliant.blobs == {DIGEST: CONTENT}


def test_small_blobs_take_one_request_where_that_is_known(pliant, pusher, tmp_path):
    pliant.single_posts = True
    small = tmp_path / "config.json"
    small.write_bytes(b"{}")
    digest = f"sha256:{sha256(b'{}').hexdigest()}"
    assert send(pusher, small, digest) == digest
    assert pliant.blobs == {digest: b"{}"}
    assert len(pliant.methods("POST")) == 1
    assert not pliant.methods("PUT")


def test_where_it_is_not_known_it_is_tried_once(pliant, pusher, tmp_path):
    for content in (b"one", b"two"):
        path = tmp_path / content.decode()
        path.write_bytes(content)
        digest = f"sha256:{sha256(content).hexdigest()}"
        assert send(pusher, path, digest) == digest
    assert len([asked for asked in pliant.methods("POST") if "digest" in asked.query]) == 1
    assert len(pliant.methods("POST")) == 2  # the session of the first attempt was used
    assert sorted(pliant.blobs.values()) == [b"one", b"two"]


def test_an_empty_file_is_a_blob(pliant, pusher, tmp_path):
    (tmp_path / "empty").touch()
    digest = send(pusher, tmp_path / "empty")
    assert digest == f"sha256:{sha256(b'').hexdigest()}"
    assert pliant.blobs == {digest: b""}


def test_a_tar_is_sent_without_being_written(pliant, pusher, file):
    head, tail = tar_around("a/weights.bin", len(CONTENT))
    with LayerReader(layer(file, head=head, tail=tail)) as reader:
        digest = pusher.send(reader, None)
    assert pliant.blobs[digest] == head + CONTENT + tail
    assert len(pliant.blobs[digest]) % 512 == 0


def test_a_mounted_blob_is_not_sent(pliant, pusher):
    answer = Mishap(status=201, headers={"Docker-Content-Digest": DIGEST})
    pliant.plan = lambda asked: answer if "mount" in asked.query else None
    assert pusher.mount(DIGEST, "x/other")
    assert pliant.methods("POST")[0].query == {"mount": DIGEST, "from": "x/other"}


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_where_mounting_is_refused_it_is_not_asked_again(pliant, pusher, status):
    pliant.plan = lambda asked: Mishap(status=status) if "mount" in asked.query else None
    assert not pusher.mount(DIGEST, "x/other")
    assert not pusher.mount(DIGEST, "x/other")
    assert len(pliant.methods("POST")) == 1


def test_a_session_given_instead_of_a_mount_is_used(pliant, pusher, file):
    assert not pusher.mount(DIGEST, "x/other")
    assert send(pusher, file, DIGEST) == DIGEST
    assert len(pliant.methods("POST")) == 1


def test_a_file_that_is_written_to_meanwhile_is_not_pushed(pliant, pusher, file):
    def plan(asked: Asked) -> None:
        if asked.method == "PATCH":
            os.utime(file, ns=(1, 1))

    pliant.plan = plan
    with pytest.raises(OriginChanged, match=r"weights\.bin was changed while it was pushed"):
        send(pusher, file)
    assert not pliant.blobs


def test_a_file_that_becomes_shorter_is_not_pushed(pusher, file):
    with LayerReader(layer(file)) as reader:
        os.truncate(file, 1000)
        with pytest.raises(OriginChanged):
            pusher.send(reader, None)
    with pytest.raises(OriginChanged):
        LayerReader(Outgoing("weights.bin", "application/x", file, len(CONTENT)))


def test_stopping_ends_a_send_between_two_reads(pliant, pusher, file):
    stop = threading.Event()
    with LayerReader(layer(file), lambda _: stop.set(), stop) as reader:
        with pytest.raises(Cancelled):
            pusher.send(reader, None)
        assert reader.hashed_bytes < len(CONTENT)
    assert not pliant.blobs


REFUSALS = {
    (401, "UNAUTHORIZED"): (NoCredentials, "docker login"),
    (403, "DENIED"): (Forbidden, "docker login"),
    (400, "NAME_INVALID"): (SourceRefused, "does not accept the name"),
    (404, "NAME_UNKNOWN"): (NotFound, "create the repository"),
    (405, "UNSUPPORTED"): (SourceRefused, "read-only"),
    (413, "SIZE_INVALID"): (SourceRefused, "--chunk-size"),
    (307, "UNKNOWN"): (SourceRefused, "redirect"),
    (500, "UNKNOWN"): (SourceUnavailable, "500"),
    (507, "UNKNOWN"): (SourceRefused, "507"),
}


@pytest.mark.parametrize("answer", REFUSALS, ids=str)
def test_refusals_say_what_to_do(pliant, pusher, file, answer):
    status, code = answer
    error, words = REFUSALS[answer]
    headers = {"WWW-Authenticate": "Basic realm=test"} if status == 401 else {}
    pliant.plan = lambda asked: (
        Mishap(status=status, code=code, headers=headers) if asked.method == "POST" else None
    )
    with pytest.raises(error, match=words) as caught:
        send(pusher, file)
    assert pliant.name in caught.value.message


def test_a_registrys_words_are_shown_without_queries_and_control_characters(pliant, pusher, file):
    message = "quota of 5 GiB exceeded\x1b[2J see https://r.example/q?token=s3cret" + 500 * "x"
    pliant.plan = lambda asked: (
        Mishap(status=403, code="DENIED", message=message) if asked.method == "POST" else None
    )
    with pytest.raises(Forbidden, match="quota of 5 GiB exceeded") as caught:
        send(pusher, file)
    assert "s3cret" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 600


def test_the_state_of_a_session_is_in_no_message(pliant, pusher, file):
    pliant.plan = lambda asked: Mishap(status=500) if "state" in str(asked.query) else None
    with pytest.raises(SourceUnavailable) as caught:
        send(pusher, file)
    assert "_state" not in f"{caught.value} {uploads.Session('http://x/?_state=secret')!r}"
