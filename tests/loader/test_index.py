from __future__ import annotations

import json
from typing import Any

import pytest

from modelcache.errors import BadTensors, UsageError
from modelcache.loader.header import parse_header
from modelcache.loader.index import find_shards
from tests.loader.models import entry

INDEX = "model.safetensors.index.json"


def read(weight_map: Any) -> Any:
    return lambda name: json.dumps({"weight_map": weight_map}).encode() if name == INDEX else b""


def test_the_index_says_which_files_count_and_in_which_order() -> None:
    names = [INDEX, "consolidated.safetensors", "b.safetensors", "a.safetensors"]
    shards = find_shards(names, read({"x": "b.safetensors", "y": "a.safetensors"}))
    assert shards.files == ("a.safetensors", "b.safetensors")


def test_without_an_index_the_files_at_the_top_count() -> None:
    names = ["b.safetensors", "a.safetensors", "unet/c.safetensors", "config.json"]
    assert find_shards(names, read({})).files == ("a.safetensors", "b.safetensors")


def test_globs_reach_below_the_top_and_pass_over_the_index() -> None:
    names = [INDEX, "a.safetensors", "unet/c.safetensors", "unet/c.json"]
    assert find_shards(names, read({}), ["unet/*"]).files == ("unet/c.safetensors",)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "x\x00y", "a//b", "missing.safetensors"],
)
def test_a_name_in_the_index_is_no_path_unless_the_model_has_such_a_file(name: str) -> None:
    with pytest.raises(BadTensors, match="names"):
        find_shards([INDEX, "a.safetensors"], read({"x": name}))


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"{}",
     b'{"weight_map": {"a": "x", "a": "y"}}'],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(BadTensors):
        find_shards([INDEX, "a.safetensors"], lambda _: data)


def test_a_tensor_that_its_file_lacks_is_missed() -> None:
    shards = find_shards([INDEX, "a.safetensors"], read({"x": "a.safetensors"}))
    text = json.dumps({"y": entry("U8", [1], 0, 1)}).encode()
    with pytest.raises(BadTensors, match="lacks tensor 'x'"):
        shards.check("a.safetensors", parse_header(text, 9 + len(text), "a"))


def test_two_indexes_need_a_choice() -> None:
    names = [INDEX, "model.fp16.safetensors.index.json", "a.safetensors", "b.safetensors"]
    with pytest.raises(UsageError, match="2 indexes"):
        find_shards(names, read({}))


@pytest.mark.parametrize("globs", [[], ["*.bin"]])
def test_a_model_without_safetensors_says_so(globs: list[str]) -> None:
    with pytest.raises(UsageError, match="no safetensors file"):
        find_shards(["pytorch_model.bin"], read({}), globs)
