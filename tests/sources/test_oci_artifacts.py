"""Artifacts of every known convention: what becomes of their layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.config import BLOCK_BYTES, Settings
from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.manifests import Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import NotFound, SourceRefused, UnsafePath
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable
from tests.sources.artifacts import FILEPATH, TITLE, Repository, tar_of
from tests.sources.fetching import read

CONFIG = b'{"hidden_size": 4096}'
WEIGHTS = random.Random(5).randbytes(BLOCK_BYTES + 4321)
MODEL = "application/vnd.cncf.model"
KIT = "application/vnd.kitops.modelkit"
_numbers = count()

Opened = Callable[[str], tuple[Source, Manifest]]


@pytest.fixture
def repository(docker_registry: DockerRegistry, tmp_path: Path) -> Repository:
    try:
        return Repository(docker_registry.name, f"artifacts/m{next(_numbers)}", tmp_path / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


def resolve(repository: Repository, options: str = "", tag: str = "latest") -> Manifest:
    ref = parse_ref(f"oci://{repository.ref(tag)}{options}")
    return open_source(ref.origin(), Settings()).resolve(ref)


def contents(manifest: Manifest) -> dict[str, bytes]:
    source = open_source(parse_ref(manifest.origin), Settings())
    return {file.path: read(source, file).body for file in manifest.files}


# As oras makes them


def test_files_pushed_by_oras_are_raw_layers_at_their_names(repository):
    repository.push({"config.json": CONFIG, "weights/model.safetensors": WEIGHTS})
    manifest = resolve(repository)
    assert contents(manifest) == {"config.json": CONFIG, "weights/model.safetensors": WEIGHTS}
    assert all(file.blob.startswith("sha256-") for file in manifest.files)
    assert not manifest.archives


def test_a_folder_pushed_by_oras_is_a_compressed_archive(repository, tmp_path):
    folder = tmp_path / "oras" / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    repository.run("push", repository.ref(), "model", folder=tmp_path / "oras")
    (archive,) = resolve(repository).archives
    assert archive.compression is Compression.GZIP
    assert (archive.unpacking, archive.root) == (Unpacking.PLAIN, "")


def test_an_artifact_type_changes_nothing(repository):
    repository.push({"config.json": CONFIG}, extra=["--artifact-type", "application/vnd.x.y+type"])
    assert contents(resolve(repository)) == {"config.json": CONFIG}


def test_the_artifact_is_pulled_whole_and_resolves_to_the_same_model(repository, tmp_path):
    repository.push({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    with Engine(Settings().with_store(tmp_path / "store")) as engine:
        snapshot = engine.pull(parse_ref(f"oci://{repository.ref()}"))
    assert (snapshot.path / "config.json").read_bytes() == CONFIG
    assert (snapshot.path / "model.safetensors").read_bytes() == WEIGHTS
    assert snapshot.model_id == resolve(repository).model_id


# Tags and digests


def test_a_digest_decides_over_the_tag(repository):
    repository.push({"config.json": b"old"}, tag="v1")
    digest = repository.run("resolve", repository.ref("v1")).strip()
    repository.push({"config.json": b"new"}, tag="v1")
    assert contents(resolve(repository, tag="v1")) == {"config.json": b"new"}
    assert contents(resolve(repository, f"@{digest}", tag="v1")) == {"config.json": b"old"}


def test_what_was_pinned_can_be_read_after_its_tag_has_moved(repository):
    repository.push({"config.json": b"old"})
    manifest = resolve(repository)
    repository.push({"config.json": b"new"})
    assert contents(manifest) == {"config.json": b"old"}


# ModelPack and KitOps


@pytest.mark.parametrize("vendor", ["cncf", "cnai"])
def test_raw_layers_of_a_modelpack_lie_where_their_annotation_says(repository, vendor):
    family, name = f"application/vnd.{vendor}.model", f"org.{vendor}.model.filepath"
    repository.manifest(
        [
            repository.blob(WEIGHTS, f"{family}.weight.v1.raw", {name: "w/model.safetensors"}),
            repository.blob(CONFIG, f"{family}.weight.config.v1.raw", {name: "config.json"}),
            repository.blob(b"# Model", f"{family}.doc.v1.raw", {name: "README.md"}),
        ],
        artifact_type=f"{family}.manifest.v1+json",
        config_type=f"{family}.config.v1+json",
    )
    assert contents(resolve(repository)) == {
        "w/model.safetensors": WEIGHTS,
        "config.json": CONFIG,
        "README.md": b"# Model",
    }


def test_compressed_layers_of_a_modelpack_are_archives(repository):
    packed = tar_of({"x": b"y"})
    repository.manifest(
        [
            repository.blob(packed + b"1", f"{MODEL}.weight.v1.tar+gzip", {FILEPATH: "a"}),
            repository.blob(packed + b"2", f"{MODEL}.code.v1.tar+zstd", {FILEPATH: "b"}),
        ],
        artifact_type=f"{MODEL}.manifest.v1+json",
        config_type=f"{MODEL}.config.v1+json",
    )
    archives = resolve(repository).archives
    assert [archive.compression for archive in archives] == [Compression.GZIP, Compression.ZSTD]


def test_members_of_an_uncompressed_tar_are_files_that_lie_in_the_layer(repository):
    packed = tar_of({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    repository.manifest(
        [repository.blob(packed, f"{MODEL}.weight.v1.tar", {FILEPATH: "model"})],
        artifact_type=f"{MODEL}.manifest.v1+json",
        config_type=f"{MODEL}.config.v1+json",
    )
    manifest = resolve(repository)
    assert not manifest.archives
    (assembly,) = manifest.assemblies
    by_path = {file.path: file for file in manifest.files}
    assert by_path["config.json"].blob.startswith("sha256-")
    assert assembly.blobs == (by_path["model.safetensors"].blob,)


def test_a_tar_of_weights_is_pulled_into_its_files(repository, tmp_path):
    files = {"config.json": CONFIG, "a/model.safetensors": WEIGHTS, "b.bin": WEIGHTS[::-1]}
    packed = tar_of(files)
    repository.manifest(
        [repository.blob(packed, f"{KIT}.model.v1.tar")], config_type=f"{KIT}.config.v1+json"
    )
    with Engine(Settings().with_store(tmp_path / "store")) as engine:
        path = engine.pull(parse_ref(f"oci://{repository.ref()}")).path
    assert {name: (path / name).read_bytes() for name in files} == files


def test_kitops_layers_are_tars_by_their_media_type(repository):
    packed = tar_of({"x": b"y"})
    repository.manifest(
        [
            repository.blob(packed, f"{KIT}.model.v1.tar"),
            repository.blob(packed + b" ", f"{KIT}.docs.v1.tar+gzip"),
        ],
        config_type=f"{KIT}.config.v1+json",
    )
    manifest = resolve(repository)
    assert [file.path for file in manifest.files] == ["x"]
    assert [archive.compression for archive in manifest.archives] == [Compression.GZIP]


# Choosing


def test_a_path_chooses_a_folder_or_a_file_of_an_artifact(repository):
    repository.push({"a/config.json": CONFIG, "a/deep/x": b"x", "ab/y": b"y"})
    assert set(contents(resolve(repository, "?path=a"))) == {"config.json", "deep/x"}
    assert set(contents(resolve(repository, "?path=/a/deep/"))) == {"x"}
    assert contents(resolve(repository, "?path=a/deep/x")) == {"x": b"x"}
    with pytest.raises(NotFound, match="'absent'"):
        resolve(repository, "?path=absent")


def test_the_filter_sees_the_paths_inside_a_tar(repository):
    packed = tar_of({"config.json": CONFIG, "notes.txt": b"n"})
    repository.manifest([repository.blob(packed, f"{MODEL}.weight.v1.tar")])
    assert set(contents(resolve(repository, "?include=*.json"))) == {"config.json"}


def test_a_filter_that_leaves_out_weights_of_a_tar_has_it_unpacked_instead(repository):
    packed = tar_of({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    repository.manifest([repository.blob(packed, f"{MODEL}.weight.v1.tar")])
    manifest = resolve(repository, "?exclude=*.safetensors")
    assert not manifest.files
    assert [archive.compression for archive in manifest.archives] == [Compression.NONE]


# What cannot be pulled


def test_a_layer_of_an_unknown_kind_is_named_with_its_type(repository):
    layer = repository.blob(b"?", "application/vnd.ollama.image.model")
    repository.manifest([layer])
    with pytest.raises(SourceRefused, match=r"vnd\.ollama\.image\.model") as caught:
        resolve(repository)
    assert layer["digest"][:19] in caught.value.message


def test_an_unknown_form_of_model_layer_is_refused(repository):
    repository.manifest([repository.blob(b"?", f"{MODEL}.weight.v1.squashfs", {FILEPATH: "w"})])
    with pytest.raises(SourceRefused, match="squashfs"):
        resolve(repository)


def test_a_raw_layer_without_a_name_is_refused(repository):
    repository.manifest([repository.blob(b"?", f"{MODEL}.weight.v1.raw")])
    with pytest.raises(SourceRefused, match="has no name"):
        resolve(repository)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a//b"])
def test_a_name_that_leaves_the_model_is_unsafe(repository, name):
    repository.manifest([repository.blob(b"?", "application/x", {TITLE: name})])
    with pytest.raises(UnsafePath):
        resolve(repository)


def test_two_layers_of_one_name_are_refused(repository):
    layers = [repository.blob(content, "application/x", {TITLE: "w"}) for content in (b"1", b"2")]
    repository.manifest(layers)
    with pytest.raises(UnsafePath, match="twice"):
        resolve(repository)


def test_an_artifact_without_layers_is_refused(repository):
    repository.manifest([repository.blob(b"{}", "application/vnd.oci.empty.v1+json")])
    with pytest.raises(SourceRefused, match="without layers"):
        resolve(repository)
