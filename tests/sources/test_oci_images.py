"""Container images that carry models, as buildah, crane and skopeo make them, and indexes."""

from __future__ import annotations

import gzip
import platform
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from modelcache.config import OciSettings, Settings, TransferSettings
from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.manifests import Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import InvalidConfig, InvalidRef, NotFound, SourceRefused
from modelcache.sources.oci import OciSource
from modelcache.sources.oci.documents import Platform
from modelcache.sources.oci.platforms import this_machine
from modelcache.sources.opening import open_source
from tests.servers.crane_registry import CraneRegistry
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable, find_program
from tests.sources.artifacts import Repository, tar_of
from tests.sources.fetching import read

LAYER = tar_of({"models/config.json": b"{}"})
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker"
_numbers = count()


@pytest.fixture
def repository(docker_registry: DockerRegistry, tmp_path: Path) -> Repository:
    try:
        return Repository(docker_registry.name, f"images/m{next(_numbers)}", tmp_path / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


def program(name: str, hint: str) -> str:
    try:
        return find_program(name, hint)
    except ServerUnavailable as error:
        pytest.skip(str(error))


def run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resolve(ref: str, **settings: Any) -> Manifest:
    parsed = parse_ref(f"oci://{ref}")
    return OciSource(parsed, OciSettings(**settings), TransferSettings()).resolve(parsed)


def image(repository: Repository, text: bytes, *, tag: str) -> dict[str, Any]:
    """An image of one layer, told from others by its content."""
    layer = repository.blob(tar_of({"models/text": text}), OCI_LAYER)
    return repository.manifest([layer], tag=tag, config_type=OCI_CONFIG)


# As tools make them


@pytest.mark.parametrize("server", ["docker_registry", "crane_registry"])
def test_an_image_appended_by_crane_is_layers_below_models(server, request, tmp_path):
    registry: DockerRegistry | CraneRegistry = request.getfixturevalue(server)
    crane = program("crane", "run `python -m tests.tools`")
    ref = f"{registry.name}/images/m{next(_numbers)}:latest"
    archive = tmp_path / "layer.tar"
    archive.write_bytes(LAYER)
    run(crane, "append", "--insecure", "--new_layer", str(archive), "--new_tag", ref)
    (archive_found,) = resolve(ref).archives
    assert archive_found.unpacking is Unpacking.IMAGE
    assert archive_found.root == "models"
    assert archive_found.compression is Compression.GZIP
    source = open_source(parse_ref(f"oci://{ref}"), Settings())
    assert gzip.decompress(read(source, archive_found.layer).body) == LAYER


def test_layers_of_an_image_built_by_buildah_are_in_their_order(docker_registry, tmp_path):
    buildah = program("buildah", "apt-get install buildah")
    ref = f"{docker_registry.name}/images/m{next(_numbers)}:latest"
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    tool = [buildah, "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")]
    tool += ["--storage-driver", "vfs"]
    (tmp_path / "weights").write_bytes(b"w" * 5000)
    (tmp_path / "Containerfile").write_text(
        "FROM scratch\nCOPY weights /models/weights\nCOPY Containerfile /models/second\n"
    )
    build = ["build", "--layers", "--isolation", "chroot", "--signature-policy", str(policy)]
    done = subprocess.run(
        [*tool, *build, "-t", "model", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"buildah does not run here: {done.stderr.strip()[-200:]}")
    push = ["push", "--tls-verify=false", "--signature-policy", str(policy)]
    run(*tool, *push, "model", f"docker://{ref}")
    manifest = resolve(ref)
    assert [archive.root for archive in manifest.archives] == ["models"] * 2
    source = open_source(parse_ref(f"oci://{ref}"), Settings())
    unpacked = [gzip.decompress(read(source, a.layer).body) for a in manifest.archives]
    assert [b"models/weights" in unpacked[0], b"models/second" in unpacked[1]] == [True, True]


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_copies_keep_their_layers_in_both_formats(repository, form):
    skopeo = program("skopeo", "apt-get install skopeo")
    image(repository, b"x", tag="made")
    run(
        skopeo,
        "copy",
        "--insecure-policy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--format",
        form,
        f"docker://{repository.ref('made')}",
        f"docker://{repository.ref(form)}",
    )
    (archive,) = resolve(repository.ref(form)).archives
    assert (archive.unpacking, archive.root) == (Unpacking.IMAGE, "models")


# By their documents


@pytest.mark.parametrize(
    ("media_type", "content", "compression"),
    [
        (OCI_LAYER, LAYER, Compression.NONE),
        (f"{OCI_LAYER}+gzip", LAYER, Compression.GZIP),
        (f"{OCI_LAYER}+zstd", LAYER, Compression.ZSTD),
        (f"{DOCKER}.image.rootfs.diff.tar.gzip", LAYER, Compression.GZIP),
        (f"{DOCKER}.image.rootfs.diff.tar", gzip.compress(LAYER), Compression.GZIP),
        (OCI_LAYER, b"\x28\xb5\x2f\xfd" + LAYER, Compression.ZSTD),
    ],
)
def test_compression_is_told_by_the_media_type_and_else_by_the_bytes(
    repository, media_type, content, compression
):
    repository.manifest([repository.blob(content, media_type)], config_type=OCI_CONFIG)
    (archive,) = resolve(repository.ref()).archives
    assert archive.compression is compression


def test_a_schema_2_image_of_docker_is_an_image(repository):
    repository.manifest(
        [repository.blob(LAYER, f"{DOCKER}.image.rootfs.diff.tar.gzip")],
        config_type=f"{DOCKER}.container.image.v1+json",
        media_type=f"{DOCKER}.distribution.manifest.v2+json",
    )
    (archive,) = resolve(repository.ref()).archives
    assert archive.unpacking is Unpacking.IMAGE


def test_another_folder_of_an_image_is_chosen_by_the_path(repository):
    image(repository, b"x", tag="latest")
    assert resolve(f"{repository.ref()}?path=/opt/weights").archives[0].root == "opt/weights"
    assert resolve(f"{repository.ref()}?path=/").archives[0].root == ""


@pytest.mark.parametrize(
    "media_type",
    [
        f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
def test_layers_that_lie_with_a_vendor_are_refused(repository, media_type):
    layer = repository.blob(LAYER, media_type)
    repository.manifest([layer], config_type=OCI_CONFIG)
    with pytest.raises(SourceRefused, match="may not be distributed"):
        resolve(repository.ref())


def test_an_image_with_a_layer_of_another_kind_is_refused(repository):
    repository.manifest([repository.blob(b"?", "application/vnd.x.y")], config_type=OCI_CONFIG)
    with pytest.raises(SourceRefused, match=r"vnd\.x\.y"):
        resolve(repository.ref())


def test_named_files_under_an_images_config_are_an_artifact(repository):
    title = {"org.opencontainers.image.title": "w.bin"}
    repository.manifest([repository.blob(b"w", "application/x", title)], config_type=OCI_CONFIG)
    assert [file.path for file in resolve(repository.ref()).files] == ["w.bin"]


# Indexes


def at(descriptor: dict[str, Any], os: str, architecture: str, variant: str = ""):
    named = {"os": os, "architecture": architecture} | ({"variant": variant} if variant else {})
    return descriptor | {"platform": named}


def layer_of(repository: Repository, options: str = "", **settings: Any) -> str:
    """The digest of the layer that was chosen."""
    (archive,) = resolve(f"{repository.ref('index')}{options}", **settings).archives
    return archive.layer.key


@pytest.fixture
def indexed(repository: Repository) -> dict[str, str]:
    """An index of three platforms and an attestation; each one's layer."""
    found, entries = {}, []
    for name in ("linux/amd64", "linux/arm64/v8", "linux/arm/v7"):
        made = image(repository, name.encode(), tag=name.replace("/", "-"))
        entries.append(at(made, *name.split("/")))
        found[name] = resolve(repository.ref(name.replace("/", "-"))).archives[0].layer.key
    attestation = at(image(repository, b"attestation", tag="a"), "unknown", "unknown")
    entries.append(
        attestation | {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    )
    repository.index(entries, tag="index")
    return found


def test_the_platform_of_the_ref_chooses_and_then_that_of_the_settings(repository, indexed):
    assert layer_of(repository, "?platform=linux/arm64") == indexed["linux/arm64/v8"]
    assert layer_of(repository, "?platform=linux/arm/v7") == indexed["linux/arm/v7"]
    assert layer_of(repository, platform="linux/arm64") == indexed["linux/arm64/v8"]
    both = layer_of(repository, "?platform=linux/amd64", platform="linux/arm64")
    assert both == indexed["linux/amd64"]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64/v8"), ("armv7l", "linux/arm/v7")],
)
def test_this_machine_chooses_where_nobody_else_does(
    repository, indexed, monkeypatch, machine, expected
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert layer_of(repository) == indexed[expected]


def test_a_platform_that_is_not_there_is_named_with_those_that_are(repository, indexed):
    with pytest.raises(NotFound) as caught:
        layer_of(repository, "?platform=linux/s390x")
    message = caught.value.message
    assert "no manifest for linux/s390x; there are " in message
    assert all(name in message for name in indexed)
    assert "unknown" not in message


def test_the_plainest_variant_is_chosen_where_none_is_asked_for(repository):
    entries = [
        at(image(repository, variant.encode(), tag=f"v{variant}"), "linux", "amd64", variant)
        for variant in ("v3", "v1", "v2")
    ]
    repository.index(entries, tag="index")
    plain = resolve(repository.ref("vv1")).archives[0].layer.key
    assert layer_of(repository, "?platform=linux/amd64") == plain


def test_a_single_manifest_without_a_platform_is_the_one(repository):
    made = image(repository, b"x", tag="one")
    repository.index([made], tag="index")
    assert layer_of(repository) == resolve(repository.ref("one")).archives[0].layer.key


def test_several_manifests_without_a_platform_leave_the_choice_to_the_user(repository):
    repository.index([image(repository, text, tag="t") for text in (b"1", b"2")], tag="index")
    with pytest.raises(NotFound, match="by its digest"):
        layer_of(repository)


def test_an_index_of_indexes_is_followed_and_not_for_ever(repository):
    inner = repository.index([image(repository, b"x", tag="one")], tag="inner")
    repository.index([inner], tag="index")
    assert layer_of(repository) == resolve(repository.ref("one")).archives[0].layer.key
    deeper = repository.index([repository.index([inner], tag="index")], tag="index")
    repository.index([deeper], tag="index")
    with pytest.raises(SourceRefused, match="index of indexes"):
        layer_of(repository)


@pytest.mark.parametrize("text", ["arm64", "linux/", "linux/arm64/v8/x", "linux amd64"])
def test_what_is_no_platform_is_refused_where_it_was_written(text):
    ref = parse_ref("oci://r.example/m")
    with pytest.raises(InvalidConfig, match=r"oci\.platform"):
        OciSource(ref, OciSettings(platform=text), TransferSettings())
    escaped = text.replace(" ", "%20")
    with pytest.raises(InvalidRef, match="option 'platform'"):
        resolve(f"r.example/m?platform={escaped}")


def test_this_machine_is_a_platform_that_registries_know():
    found = this_machine()
    assert found.os == "linux"
    assert isinstance(found, Platform)
    assert found.architecture not in {"x86_64", "aarch64"}
