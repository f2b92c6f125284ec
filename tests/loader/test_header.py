from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from modelcache.errors import BadTensors
from modelcache.loader.header import Header, header_bytes, parse_header
from tests.loader.models import entry

F32 = entry("F32", [2], 0, 8)
GOOD = {"a": F32, "b": entry("U8", [3], 8, 11)}


def parse(table: Any, data_bytes: int) -> Header:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return parse_header(text, 8 + len(text) + data_bytes, "x.safetensors")


def parse_file(data: bytes) -> Header:
    length = header_bytes(data[:8], len(data), "x")
    return parse_header(data[8 : 8 + length], len(data), "x")


def test_tensors_come_in_the_order_of_their_bytes_with_offsets_in_the_file() -> None:
    header = parse({"b": GOOD["b"], "a": F32, "__metadata__": {"format": "pt"}}, 11)
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert header.tensors[1].end - header.tensors[0].start == 11
    assert header.metadata == {"format": "pt"}


def test_what_the_reference_writes_is_read_to_the_byte() -> None:
    arrays = {"w": np.arange(6, dtype=np.int16).reshape(2, 3), "s": np.array(1.5)}
    data = save(arrays)
    for tensor in parse_file(data).tensors:
        assert data[tensor.start : tensor.end] == arrays[tensor.name].tobytes()


@pytest.mark.parametrize(
    ("table", "data_bytes", "why"),
    [
        (b"", 0, "no JSON object"),
        (b"[1]", 0, "no JSON object"),
        (b'{"a":', 0, "no JSON"),
        (b"{\xff}", 0, "no JSON"),
        (b'{"a": ' + b"[" * 100_000, 0, "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "no JSON"),
        (b'{"a": 1, "a": 2}', 0, "'a' twice"),
        (b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [], "data_offsets": [0,1]}}', 1, "twice"),
        ({"a": 7}, 0, "lacks one of"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "lacks one of"),
        ({"a": entry("F31", [2], 0, 8)}, 8, "unknown type"),
        ({"a": {**F32, "dtype": {"x": 1}}}, 8, "unknown type"),
        ({"a": {**F32, "shape": 2}}, 8, "no shape"),
        ({"a": {**F32, "shape": [True, 2]}}, 8, "no shape"),
        ({"a": {**F32, "shape": [2.0]}}, 8, "no shape"),
        ({"a": {**F32, "shape": [-1, -2]}}, 8, "no shape"),
        ({"a": {**F32, "shape": [1] * 33 + [2]}}, 8, "no shape"),
        ({"a": {**F32, "shape": [2**64]}}, 8, "no shape"),
        ({"a": {**F32, "data_offsets": [0]}}, 8, "no two offsets"),
        ({"a": {**F32, "data_offsets": [0, -8]}}, 8, "no two offsets"),
        ({"a": {**F32, "data_offsets": [0, "8"]}}, 8, "no two offsets"),
        ({"a": entry("F32", [2], 0, 4)}, 4, "take 8"),
        ({"a": entry("F32", [2], 8, 0)}, 8, "take 8"),
        ({"a": entry("F32", [2**31, 2**31, 2**2], 0, 0)}, 0, "nothing could hold"),
        ({"a": entry("F32", [0, 2**61, 2**61], 0, 0)}, 0, "nothing could hold"),
        ({"a": entry("F4", [3], 0, 1)}, 1, "take 1.5"),
        ({"a": F32, "b": entry("U8", [3], 7, 10)}, 11, "overlaps"),
        ({"a": F32, "b": F32}, 8, "overlaps"),
        ({"a": F32, "b": entry("U8", [3], 9, 12)}, 12, "gap"),
        ({"a": entry("U8", [3], 4, 7)}, 7, "gap"),
        (GOOD, 10, "cut off"),
        (GOOD, 12, "belong to no tensor"),
        ({"a": entry("F32", [2**40], 0, 2**42)}, 100, "cut off"),
        ({"__metadata__": {"a": 1}}, 0, "no table of texts"),
        ({"__metadata__": "x"}, 0, "no table of texts"),
        ({"x" * 10_000: 1}, 0, "x…"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(
    table: Any, data_bytes: int, why: str
) -> None:
    with pytest.raises(BadTensors) as caught:
        parse(table, data_bytes)
    assert why in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("prefix", "size", "why"),
    [
        (b"", 0, "no safetensors file"),
        (b"1234567", 7, "no safetensors file"),
        (struct.pack("<Q", 2**63), 2**20, "more than"),
        (struct.pack("<Q", 100_000_001), 2**40, "more than"),
        (struct.pack("<Q", 100), 107, "cut off"),
    ],
)
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(
    prefix: bytes, size: int, why: str
) -> None:
    with pytest.raises(BadTensors, match=why):
        header_bytes(prefix, size, "x")


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F16", "F32", "F4", "nope"]),
        "shape": st.lists(st.integers(-1, 5), max_size=3),
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2),
    }
)


@given(st.dictionaries(st.sampled_from("abc"), ENTRIES, max_size=3), st.integers(0, 24))
def test_nothing_is_accepted_that_the_reference_refuses(
    table: dict[str, Any], data_bytes: int
) -> None:
    text = json.dumps(table).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(data_bytes)
    try:
        parsed = parse_file(data)
    except BadTensors:
        return
    try:
        reference = deserialize(data)
    except SafetensorError as error:
        raise AssertionError(f"accepted {table}") from error
    assert {name for name, _ in reference} == {tensor.name for tensor in parsed.tensors}


@given(st.binary(max_size=64))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        parse_file(struct.pack("<Q", len(data)) + data)
    except BadTensors:
        return
