"""Messages between nodes: what goes out comes in the same, and nothing odd comes in at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.holdings import Holding, HoldingState, bitmap
from modelcache.domain.manifests import BlobId, ModelId
from modelcache.domain.members import Member, NodeId
from modelcache.domain.ranges import ChunkGrid
from modelcache.errors import CorruptData
from modelcache.peers.messages import (
    ANNOUNCEMENT_BYTES_MAX,
    BLOBS_MAX,
    HANDED_MAX,
    MODELS_MAX,
    ORIGINS_MAX,
    RESOLVE_BYTES_MAX,
    Announcement,
    ResolveRequest,
)
from tests.peers.support import blob_id

GRID = ChunkGrid(100 << 20, 16 << 20)
SAID = Announcement(
    node=NodeId("node-1"),
    member=Member("fd00::1", 9871, "eu-1a"),
    blobs=(
        Holding(blob_id(1), HoldingState.FETCHING, GRID, bitmap([0, 6], GRID.count)),
        Holding(blob_id(2), HoldingState.COMPLETE, GRID),
        Holding(BlobId("origin-" + "a" * 64), HoldingState.NONE, ChunkGrid(0, 1)),
    ),
    models=(ModelId("0" * 64),),
    asked_models=(ModelId("f" * 64),),
    draining=True,
    throttled={"hf://": 12.5},
    origins={"s3://bucket": 8},
    handed=("hf://org/name",),
    life="0123456789abcdef",
)


def changed(**fields: Any) -> bytes:
    raw = json.loads(SAID.to_json())
    raw.update(fields)
    return json.dumps(raw).encode()


def changed_blob(**fields: Any) -> bytes:
    raw = json.loads(SAID.to_json())
    raw["blobs"][0].update(fields)
    return json.dumps(raw).encode()


def test_announcements_arrive_as_they_were_said():
    assert Announcement.from_json(SAID.to_json()) == SAID
    plain = Announcement(NodeId("n"), Member("10.0.0.1", 1))
    assert Announcement.from_json(plain.to_json()) == plain


@pytest.mark.parametrize("stale", [True, False])
def test_questions_arrive_as_they_were_asked(stale: bool):
    asked = ResolveRequest("hf://org/näme?include=*.json", 0.5, stale=stale, for_pods=stale)
    assert ResolveRequest.from_json(asked.to_json()) == asked


def test_who_does_not_say_that_it_is_for_pods_asks_for_itself():
    """As nodes of earlier versions do, while a cluster is upgraded."""
    earlier = b'{"ref": "hf://org/name", "max_age_s": 0, "stale": false}'
    assert not ResolveRequest.from_json(earlier).for_pods


def test_fields_of_newer_versions_are_left_alone():
    assert Announcement.from_json(changed(weather="fine")) == SAID


@pytest.mark.parametrize(
    "fields",
    [
        {"node": "../x"},
        {"node": "a\nb"},
        {"node": 5},
        {"node": ""},
        {"host": "a b"},
        {"host": "-x"},
        {"host": ""},
        {"host": "[::1]"},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": 1.5},
        {"zone": "a\r\nb"},
        {"zone": None},
        {"blobs": {}},
        {"blobs": [5]},
        {"blobs": [{}] * (BLOBS_MAX + 1)},
        {"models": ["g" * 64]},
        {"models": ["0" * 63]},
        {"models": ["0" * 64] * (MODELS_MAX + 1)},
        {"draining": 1},
        {"leaving": None},
        {"throttled": []},
        {"throttled": {"a": -1}},
        {"throttled": {"a": float("nan")}},
        {"throttled": {"a": float("inf")}},
        {"throttled": {"a": "1"}},
        {"throttled": {"": 1}},
        {"throttled": {"a\x1b": 1}},
        {"throttled": {str(i): 1 for i in range(ORIGINS_MAX + 1)}},
        {"origins": {"a": 1.5}},
        {"origins": {"a": -1}},
        {"handed": [""]},
        {"handed": [5]},
        {"life": 5},
        {"life": "a b"},
        {"life": "a" * 33},
        {"handed": ["hf://a/b"] * (HANDED_MAX + 1)},
    ],
)
def test_announcements_with_a_field_that_cannot_be_are_corrupt(fields: dict[str, Any]):
    with pytest.raises(CorruptData):
        Announcement.from_json(changed(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"blob": "sha256-" + "A" * 64},
        {"blob": "../" + "a" * 64},
        {"blob": None},
        {"state": "sold"},
        {"state": []},
        {"chunks": "AAA"},
        {"chunks": "AAAA"},  # three bytes where one is expected
        {"chunks": ""},
        {"chunks": "é"},
        {"state": "complete"},  # with a bitmap
        {"size_bytes": -1},
        {"size_bytes": 1 << 51},
        {"size_bytes": True},
        {"chunk_bytes": 0},
        {"chunk_bytes": 1},  # a hundred million chunks
    ],
)
def test_announcements_with_a_blob_that_cannot_be_are_corrupt(fields: dict[str, Any]):
    with pytest.raises(CorruptData):
        Announcement.from_json(changed_blob(**fields))


@pytest.mark.parametrize("name", sorted({*json.loads(SAID.to_json())} - {"handed", "life"}))
def test_every_field_must_be_there(name: str):
    raw = json.loads(SAID.to_json())
    del raw[name]
    with pytest.raises(CorruptData, match=name):
        Announcement.from_json(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"port":' + b"9" * 10_000 + b"}",
        b" " * (ANNOUNCEMENT_BYTES_MAX + 1),
    ],
    ids=range(9),
)
def test_what_is_no_message_is_corrupt(data: bytes):
    for message in (Announcement, ResolveRequest):
        with pytest.raises(CorruptData):
            message.from_json(data)


@pytest.mark.parametrize(
    "raw",
    [
        {"ref": "", "max_age_s": 0, "stale": False},
        {"ref": "x" * 20_000, "max_age_s": 0, "stale": False},
        {"ref": "hf://a/b", "max_age_s": -1, "stale": False},
        {"ref": "hf://a/b", "max_age_s": 0, "stale": "no"},
        {"ref": ["hf://a/b"], "max_age_s": 0, "stale": False},
        {"ref": "hf://a/b", "max_age_s": 0, "stale": False, "x": "x" * RESOLVE_BYTES_MAX},
    ],
    ids=range(6),
)
def test_questions_that_cannot_be_are_corrupt(raw: dict[str, Any]):
    with pytest.raises(CorruptData):
        ResolveRequest.from_json(json.dumps(raw).encode())


def test_an_announcement_of_more_than_fits_says_what_fits():
    grid = ChunkGrid(8 << 40, 16 << 20)  # half a million chunks: 64 KiB each
    holding = Holding(blob_id(1), HoldingState.FETCHING, grid, bytes(-(-grid.count // 8)))
    data = Announcement(SAID.node, SAID.member, (holding,) * 200).to_json()
    assert len(data) <= ANNOUNCEMENT_BYTES_MAX
    told = Announcement.from_json(data).blobs
    assert 50 < len(told) < 200
    assert set(told) == {holding}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(list(json.loads(SAID.to_json()))), json_values)
def test_any_value_in_any_field_is_read_or_corrupt(name: str, value: Any):
    try:
        told = Announcement.from_json(changed(**{name: value}))
    except CorruptData:
        return
    assert Announcement.from_json(told.to_json()) == told


@given(st.sampled_from(["blob", "state", "chunks", "size_bytes", "chunk_bytes"]), json_values)
def test_any_value_in_any_field_of_a_blob_is_read_or_corrupt(name: str, value: Any):
    try:
        told = Announcement.from_json(changed_blob(**{name: value}))
    except CorruptData:
        return
    assert Announcement.from_json(told.to_json()) == told
