"""What a pushed model looks like: the same for the same files, and what others expect."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import pytest

from modelcache.errors import UsageError
from modelcache.sources.oci.describing import describe
from modelcache.sources.oci.kinds import GUESSED_WEIGHT_BYTES, Kind, format_of, kind_of
from modelcache.sources.oci.outgoing import Outgoing, tar_around
from modelcache.sources.oci.packing import (
    FILEPATH,
    METADATA,
    TITLE,
    UNTESTED,
    LayerForm,
    Packed,
    PushFormat,
    config_document,
    layer_sizes,
    manifest_document,
    pack_file,
)

DIGEST = "sha256:" + 64 * "a"


def packed(name: str, size_bytes: int = 10, **more) -> Outgoing:
    options = {"packing": PushFormat.MODELPACK, "form": LayerForm.RAW, **more}
    return pack_file(name, Path("/nowhere") / name, size_bytes, **options)


def safetensors(*shapes: list[int]) -> bytes:
    tensors = {
        f"t{number}": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        for number, shape in enumerate(shapes)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header


def described(folder: Path, environment: dict[str, str] | None = None, **files: bytes):
    layers = []
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content)
        layers.append(Outgoing(path.name, "", path, len(content)))
    return describe("llama", layers, environment or {})


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model-00001-of-00002.safetensors", Kind.WEIGHT),
        ("pytorch_model.BIN", Kind.WEIGHT),
        ("q4.gguf", Kind.WEIGHT),
        ("config.json", Kind.CONFIG),
        ("tokenizer.model", Kind.CONFIG),
        ("sub/vocab.txt", Kind.CONFIG),
        ("chat_template.jinja", Kind.CONFIG),
        ("README.md", Kind.DOC),
        ("LICENSE", Kind.DOC),
        ("LICENSE.json", Kind.DOC),
        ("notes.txt", Kind.DOC),
        ("modeling_x.py", Kind.CODE),
        ("requirements.txt", Kind.CODE),
    ],
)
def test_names_tell_kinds(path, kind):
    assert kind_of(path, 1 << 40) == (kind, True)


def test_what_no_name_tells_is_guessed_and_marked():
    assert kind_of("shard.0", GUESSED_WEIGHT_BYTES) == (Kind.WEIGHT, False)
    assert kind_of("shard.0", 10) == (Kind.CONFIG, False)
    assert packed("shard.0").annotations[UNTESTED] == "true"
    assert UNTESTED not in packed("config.json").annotations


def test_a_raw_layer_has_the_names_that_all_tools_look_for():
    layer = packed("sub/a.safetensors", 7)
    assert layer.media_type == "application/vnd.cncf.model.weight.v1.raw"
    assert layer.annotations[FILEPATH] == layer.annotations[TITLE] == "sub/a.safetensors"
    assert json.loads(layer.annotations[METADATA]) == {
        "name": "a.safetensors",
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 7,
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": 0,
    }


def test_a_tar_layer_is_a_tar_of_one_file_and_has_no_title():
    layer = packed("sub/config.json", 7, form=LayerForm.TAR, digest=DIGEST)
    assert layer.media_type == "application/vnd.cncf.model.weight.config.v1.tar"
    assert TITLE not in layer.annotations
    assert layer.digest is None  # what is known is the file's, not the tar's
    content = layer.head + b"1234567" + layer.tail
    assert len(content) == layer.size_bytes
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.mode, member.mtime) == ("sub/config.json", 0o644, 0)
        assert archive.extractfile(member).read() == b"1234567"


@pytest.mark.parametrize("name", ["é" * 120, "d/" * 60 + "x", "plain"])
def test_long_and_large_members_are_read_back(name):
    head, tail = tar_around(name, 9 << 30)
    with tarfile.open(fileobj=io.BytesIO(head)) as archive:
        member = archive.next()
    assert (member.name, member.size) == (name, 9 << 30)
    assert (len(head) + (9 << 30) + len(tail)) % 512 == 0


def test_a_plain_artifact_is_what_oras_pulls():
    layer = packed("a.bin", packing=PushFormat.ORAS)
    assert dict(layer.annotations) == {TITLE: "a.bin"}
    config = config_document(PushFormat.ORAS, [Packed(layer, DIGEST)], {})
    assert (config.media_type, config.data) == ("application/vnd.oci.empty.v1+json", b"{}")
    manifest = json.loads(
        manifest_document(PushFormat.ORAS, [Packed(layer, DIGEST)], config, {}).data
    )
    assert manifest["artifactType"]
    assert "annotations" not in manifest


def test_the_manifest_names_everything_and_depends_on_nothing_else():
    layers = [Packed(packed("a.bin"), DIGEST), Packed(packed("b.json"), "sha256:" + 64 * "b")]
    config = config_document(PushFormat.MODELPACK, layers, {"descriptor": {"name": "x"}})
    assert json.loads(config.data) == {
        "descriptor": {"name": "x"},
        "config": {},
        "modelfs": {"type": "layers", "diffIds": [DIGEST, "sha256:" + 64 * "b"]},
    }
    one = manifest_document(PushFormat.MODELPACK, layers, config, {"a": "1", "b": "2"})
    other = manifest_document(PushFormat.MODELPACK, layers, config, {"b": "2", "a": "1"})
    assert one.digest == other.digest
    document = json.loads(one.data)
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert document["config"]["digest"] == config.digest
    assert [layer["size"] for layer in document["layers"]] == [10, 10]
    assert layer_sizes(one.data) == {10: "sha256:" + 64 * "b"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"layers": [{}]}', b'{"layers": 3}'])
def test_what_is_no_manifest_has_no_layers(body):
    assert layer_sizes(body) == {}


def test_a_model_is_described_by_its_own_files(tmp_path):
    settings = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
    }
    about = described(
        tmp_path,
        config__json=json.dumps(settings).encode(),
        a__safetensors=safetensors([6000, 1000], [700_000]),
        b__safetensors=safetensors([100_000]),
    )
    assert about == {
        "descriptor": {"name": "llama", "family": "llama"},
        "config": {
            "architecture": "transformer",
            "format": "safetensors",
            "precision": "bf16",
            "paramSize": "6.8m",
        },
    }


def test_quantized_parameters_are_not_counted(tmp_path):
    settings = {"quantization_config": {"quant_method": "awq"}}
    about = described(
        tmp_path,
        config__json=json.dumps(settings).encode(),
        a__safetensors=safetensors([6000, 1000]),
    )
    assert about["config"] == {"format": "safetensors", "quantization": "awq"}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"[" * 100_000, b'{"model_type": 3}'])
def test_settings_that_cannot_be_read_say_nothing(tmp_path, content):
    about = described(tmp_path, config__json=content, a__safetensors=content)
    assert about == {"descriptor": {"name": "llama"}, "config": {"format": "safetensors"}}


def test_a_header_that_lies_about_its_length_says_nothing(tmp_path):
    about = described(tmp_path, a__safetensors=struct.pack("<Q", 1 << 60) + b"{}")
    assert about["config"] == {"format": "safetensors"}


def test_the_date_is_the_environments_or_none(tmp_path):
    assert "createdAt" not in described(tmp_path)["descriptor"]
    dated = described(tmp_path, {"SOURCE_DATE_EPOCH": "86400"})
    assert dated["descriptor"]["createdAt"] == "1970-01-02T00:00:00Z"
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        described(tmp_path, {"SOURCE_DATE_EPOCH": "yesterday"})


def test_formats_are_told_by_endings():
    assert format_of("x/model.gguf") == "gguf"
    assert format_of("model.bin") == "pytorch"
    assert format_of("model") is None
