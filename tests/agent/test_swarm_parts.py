"""What a node keeps about others, and what it tells them of refs."""

from __future__ import annotations

import json
import threading

import pytest

from modelcache.agent.swarm.agreement import Agreement, first_answer, from_message, to_message
from modelcache.agent.swarm.neighbours import LOST_AFTER, Neighbours
from modelcache.domain.archives import Compression
from modelcache.domain.manifests import (
    Algorithm,
    Archive,
    Assembly,
    BlobId,
    Checksum,
    File,
    Manifest,
    Pin,
)
from modelcache.domain.members import Member, NodeId
from modelcache.domain.places import origin_name
from modelcache.errors import CorruptData, Forbidden, NotHeld, SourceUnavailable

A, B = BlobId("sha256-" + "a" * 64), BlobId("sha256-" + "b" * 64)
HERE, THERE = Member("10.0.0.1", 9871), Member("10.0.0.2", 9871)
ANN, BOB = NodeId("ann"), NodeId("bob")


def manifest() -> Manifest:
    file = File("a.safetensors", 100, "k", A, Pin(etag='"x"'))
    layer = Archive(File("layer", 50, "l", B), Compression.GZIP, root="models")
    checksum = Checksum(Algorithm.SHA256, "c" * 64)
    assembly = Assembly("a layer", checksum, (b"\x00head", A, b"tail"))
    return Manifest.of(
        "oci://registry/x:1",
        [file],
        archives=[layer],
        assemblies=[assembly],
        notes=["one left out"],
    )


def test_a_manifest_comes_through_whole_with_what_stores_do_not_keep() -> None:
    before = manifest()
    after = from_message(to_message(before))
    assert after == before
    assert after.model_id == before.model_id
    assert after.assemblies == before.assemblies
    assert after.notes == before.notes


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("manifest"),
        lambda raw: raw["manifest"]["files"][0].update(path="../../etc/passwd"),
        lambda raw: raw["manifest"]["files"][0].update(blob="../x"),
        lambda raw: raw["manifest"]["files"][0].update(size=-1),
        lambda raw: raw["assemblies"][0]["pieces"][1].update(blob="../x"),
        lambda raw: raw["assemblies"][0].update(algorithm="rot13"),
        lambda raw: raw["assemblies"].append(7),
        lambda raw: raw.update(notes=None),
    ],
    ids=range(8),
)
def test_a_manifest_that_cannot_be_is_refused(change: object) -> None:
    raw = json.loads(to_message(manifest()))
    change(raw)  # type: ignore[operator]
    with pytest.raises(CorruptData):
        from_message(json.dumps(raw).encode())


def test_a_ref_is_asked_for_once_however_many_ask() -> None:
    agreement = Agreement(60.0)
    asked = []
    go = threading.Event()

    def ask() -> Manifest:
        asked.append(1)
        go.wait(10)
        return manifest()

    threads = [threading.Thread(target=agreement.answer, args=("ref", ask)) for _ in range(8)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    agreement.answer("other", ask)
    assert len(asked) == 2


def test_an_answer_is_not_given_for_ever() -> None:
    agreement = Agreement(0.0)
    asked = []
    for _ in range(2):
        agreement.answer("ref", lambda: asked.append(1) or manifest())  # type: ignore[func-returns-value]
    assert len(asked) == 2


def test_a_failure_is_not_an_answer() -> None:
    agreement = Agreement(60.0)

    def fail() -> Manifest:
        raise SourceUnavailable("down")

    with pytest.raises(SourceUnavailable):
        agreement.answer("ref", fail)
    assert agreement.answer("ref", manifest) == manifest()


def test_the_first_node_that_answers_counts() -> None:
    def fail() -> Manifest:
        raise SourceUnavailable("gone")

    def refuse() -> Manifest:
        raise Forbidden("not for you")

    def lack() -> Manifest:
        raise NotHeld("never pulled it")

    assert first_answer([fail, lack, manifest]) == manifest()
    assert first_answer([fail, fail]) is None
    assert first_answer([refuse, manifest]) is None, "then we see for ourselves"


def test_a_node_is_gone_after_two_silences_and_back_when_heard() -> None:
    known = Neighbours()
    known.heard(ANN, HERE, 1.0, fetching=True, draining=False)
    assert known.fetching() == 1
    lost = [known.failed(HERE, "no answer") for _ in range(LOST_AFTER + 1)]
    assert lost == [None, ANN, None], "told once"
    assert known.fetching() == 0
    assert not known.reachable()
    assert known.table(5.0)[0]["trouble"] == "no answer"
    known.heard(ANN, HERE, 6.0, fetching=False, draining=False)
    assert known.reachable() == [HERE]


def test_an_address_that_answers_under_another_name_is_the_other_node() -> None:
    known = Neighbours()
    known.heard(ANN, HERE, 1.0, fetching=False, draining=False)
    known.heard(BOB, HERE, 2.0, fetching=False, draining=False)
    assert known.member(ANN) is None
    assert known.member(BOB) == HERE


def test_a_node_that_says_good_bye_or_moves_is_found_where_it_is() -> None:
    known = Neighbours()
    known.heard(ANN, HERE, 1.0, fetching=False, draining=False)
    known.heard(ANN, THERE, 2.0, fetching=False, draining=True)
    assert known.member(ANN) == THERE
    assert not known.reachable(), "it is about to leave"
    known.left(ANN)
    assert known.member(ANN) is None


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("s3://bucket/llama/8b", "s3://bucket"),
        ("oci://registry:5000/team/x:1", "oci://registry:5000"),
        ("hf://org/name@main", "hf://"),
        ("https://host/models/", "https://host"),
    ],
)
def test_what_counts_requests_together_is_named(place: str, name: str) -> None:
    assert origin_name(place) == name
