"""Identity: which changes make another model, and that the stored form loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.manifests import (
    Algorithm,
    BlobId,
    Checksum,
    File,
    Manifest,
    Pin,
    blob_id,
    canonical_json,
)
from modelcache.errors import CorruptData, UnsafePath

hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
pins = st.builds(Pin, *[st.none() | words for _ in range(4)])
checksums = st.builds(
    Checksum,
    st.sampled_from(Algorithm),
    hexes,
    st.lists(st.integers(1, 1 << 40), max_size=3).map(tuple),
)
files = st.builds(
    File,
    st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}", fullmatch=True),
    st.integers(0, 1 << 50),
    words,
    hexes.map(lambda digits: BlobId(f"origin-{digits}")),
    pins,
    st.lists(checksums, max_size=2).map(tuple),
    st.booleans(),
)


def a_file(path: str = "a.bin", **changes) -> File:
    file = File(path, 3, f"key/{path}", BlobId("origin-" + "0" * 64), Pin(etag='"x"'))
    return replace(file, **changes)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    found = draw(st.lists(files, max_size=6))
    try:
        return Manifest.of("s3://bucket/x", found)
    except UnsafePath:
        return Manifest.of("s3://bucket/x", found[:1])


@given(manifests())
def test_the_stored_form_reads_back_equal(manifest: Manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(manifests(), st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(manifest: Manifest, random):
    shuffled = list(manifest.files)
    random.shuffle(shuffled)
    assert Manifest.of(manifest.origin, shuffled) == manifest


def test_the_model_id_of_a_known_manifest_never_changes():
    manifest = Manifest.of(
        "s3://bucket/x",
        [
            a_file(
                "b/é.json", checksums=(Checksum(Algorithm.CRC32C, "0badcafe", (1, 2), ("a", "b")),)
            ),
            a_file("a.bin", pin=Pin(version="v1")),
        ],
    )
    canonical = (
        '{"files":[{"blob":"origin-' + "0" * 64 + '","checksums":[],"path":"a.bin",'
        '"pin":{"version":"v1"},"size":3},{"blob":"origin-' + "0" * 64 + '","checksums":'
        '[{"algorithm":"crc32c","part_values":["a","b"],"parts":[1,2],"value":"0badcafe"}],'
        '"path":"b/é.json","pin":{"etag":"\\"x\\""},"size":3}],"format":1}'
    )
    assert manifest.model_id == sha256(canonical.encode()).hexdigest()
    assert manifest.model_id == "bcdde0c17f365fffd7b3c89e4d06d4d4bf6f7fa84bb85c61113fc86079f9f17f"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "other.bin"},
        {"size_bytes": 4},
        {"blob": BlobId("origin-" + "1" * 64)},
        {"pin": Pin(etag='"y"')},
        {"checksums": (Checksum(Algorithm.MD5, "0" * 32),)},
    ],
)
def test_what_a_reader_would_see_decides_the_model_id(change):
    before = Manifest.of("s3://bucket/x", [a_file()])
    assert Manifest.of("s3://bucket/x", [a_file(**change)]).model_id != before.model_id


def test_where_files_lie_does_not_decide_the_model_id():
    before = Manifest.of("s3://bucket/x", [a_file()])
    moved = Manifest.of("https://mirror/x/", [a_file(key="elsewhere", ranges=False)])
    assert moved.model_id == before.model_id


def test_a_sha256_names_the_blob_wherever_it_lies():
    digest = Checksum(Algorithm.SHA256, "ab" * 32)
    names = {
        blob_id(origin=origin, key=key, size_bytes=1, pin=Pin(etag=key), checksums=[digest])
        for origin, key in [("a", "b"), ("c", "d")]
    }
    assert names == {"sha256-" + "ab" * 32}


def test_a_sha256_of_parts_names_nothing():
    digest = Checksum(Algorithm.SHA256, "ab" * 32, (1, 2))
    name = blob_id(origin="o", key="k", size_bytes=3, pin=Pin(), checksums=[digest])
    assert name.startswith("origin-")


@pytest.mark.parametrize(
    "change", [{"origin": "p"}, {"key": "l"}, {"size_bytes": 2}, {"pin": Pin(etag="f")}]
)
def test_without_a_sha256_the_pinned_state_names_the_blob(change):
    told = {"origin": "o", "key": "k", "size_bytes": 1, "pin": Pin(etag="e"), "checksums": ()}
    assert blob_id(**told) == blob_id(**told)
    assert blob_id(**told) != blob_id(**{**told, **change})


def test_origin_and_key_are_not_run_together():
    told = {"size_bytes": 1, "pin": Pin(), "checksums": ()}
    assert blob_id(origin="ab", key="c", **told) != blob_id(origin="a", key="bc", **told)


def test_a_pin_holds_unless_only_a_nonce_is_known():
    assert Pin(etag='"x"').holds
    assert Pin(modified="1").holds
    assert not Pin(nonce="random").holds
    assert not Pin().holds


def test_a_shared_blob_is_listed_once_but_counted_twice():
    manifest = Manifest.of("s3://bucket/x", [a_file("a"), a_file("b")])
    assert [file.path for file in manifest.blobs().values()] == ["a"]
    assert manifest.size_bytes == 6


@pytest.mark.parametrize("paths", [["../x"], ["a", "a/b"], ["a", "A"], ["/x"], ["x", "x"]])
def test_a_manifest_with_unsafe_names_cannot_be_made(paths):
    with pytest.raises(UnsafePath):
        Manifest.of("s3://bucket/x", [a_file(path) for path in paths])


def stored(**changes) -> bytes:
    raw = json.loads(Manifest.of("s3://bucket/x", [a_file()]).to_json())
    raw["files"][0].update(changes)
    return canonical_json(raw)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format":1,"origin":"s3://b","files":[1]}',
        b'{"format":1,"origin":7,"files":[]}',
        b'{"format":2,"origin":"s3://b","files":[]}',
        b"[" * 100_000,
        stored(path="../x"),
        stored(path=None),
        stored(size=-1),
        stored(size="3"),
        stored(size=1.5),
        stored(blob="../../etc/passwd"),
        stored(blob=None),
        stored(pin={"colour": "red"}),
        stored(pin={"etag": 1}),
        stored(pin=[]),
        stored(checksums=[{"algorithm": "rot13", "value": ""}]),
        stored(checksums=["x"]),
    ],
)
def test_a_damaged_stored_manifest_is_corrupt_data(data: bytes):
    with pytest.raises(CorruptData):
        Manifest.from_json(data)


@given(st.binary(max_size=80))
def test_no_bytes_make_reading_a_manifest_fail_otherwise(data: bytes):
    with pytest.raises(CorruptData):
        Manifest.from_json(data)


def test_checksums_that_combine_are_the_crcs():
    assert {a for a in Algorithm if a.combines} == {
        Algorithm.CRC32,
        Algorithm.CRC32C,
        Algorithm.CRC64NVME,
    }
