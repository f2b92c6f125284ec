"""Registries whose layers lie elsewhere, that serve no ranges, or that alter what they serve."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.config import BLOCK_BYTES, Settings, TransferSettings
from modelcache.domain.archives import Compression
from modelcache.domain.manifests import Manifest
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import parse_ref
from modelcache.errors import CredentialsExpired, DigestMismatch, SourceRefused
from modelcache.sources.opening import open_source
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable
from tests.sources.artifacts import Repository, tar_of
from tests.sources.fetching import read
from tests.sources.registry_front import RegistryFront

CONFIG = b'{"hidden_size": 4096}'
WEIGHTS = random.Random(11).randbytes(BLOCK_BYTES + 4321)
TAR = "application/vnd.cncf.model.weight.v1.tar"
_numbers = count()


@pytest.fixture
def front(docker_registry: DockerRegistry) -> Iterator[RegistryFront]:
    with RegistryFront(docker_registry) as running:
        yield running


@pytest.fixture
def repository(docker_registry: DockerRegistry, tmp_path: Path) -> Repository:
    try:
        return Repository(docker_registry.name, f"moved/m{next(_numbers)}", tmp_path / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = Settings(transfer=TransferSettings(retries_max=2))
    with Engine(settings.with_store(tmp_path / "store")) as running:
        yield running


def ref_of(front: RegistryFront, repository: Repository):
    return parse_ref(f"oci://{front.name}/{repository.name}")


def resolve(front: RegistryFront, repository: Repository) -> Manifest:
    ref = ref_of(front, repository)
    return open_source(ref, Settings()).resolve(ref)


def test_layers_are_read_where_the_registry_redirects_to(front, repository, engine):
    repository.push({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    path = engine.pull(ref_of(front, repository)).path
    assert (path / "config.json").read_bytes() == CONFIG
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert any("range" in asked.headers for asked in front.store.asked)


def test_where_a_layer_lies_is_asked_once_for_many_ranges(front, repository):
    repository.push({"model.safetensors": WEIGHTS})
    ref = ref_of(front, repository)
    source = open_source(ref, Settings())
    (file,) = source.resolve(ref).files
    before = len(front.front.asked)
    for start in range(0, 8000, 1000):
        span = ByteRange(start, start + 1000)
        assert read(source, file, span).body == WEIGHTS[start : start + 1000]
    assert len(front.front.asked) == before


def test_members_of_a_tar_are_read_where_the_registry_redirects_to(front, repository, engine):
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    repository.manifest([repository.blob(tar_of(files), TAR)])
    path = engine.pull(ref_of(front, repository)).path
    assert {name: (path / name).read_bytes() for name in files} == files


def test_an_address_that_expired_is_found_again(front, repository):
    repository.push({"model.safetensors": WEIGHTS})
    ref = ref_of(front, repository)
    source = open_source(ref, Settings())
    (file,) = source.resolve(ref).files
    assert read(source, file, ByteRange(0, 10)).body == WEIGHTS[:10]
    front.signature = 2
    with pytest.raises(CredentialsExpired, match="expired") as caught:
        read(source, file, ByteRange(0, 10))
    assert "signature" not in caught.value.message
    source.locate(file, fresh=True)
    assert read(source, file, ByteRange(0, 10)).body == WEIGHTS[:10]


def test_a_registry_that_begins_to_redirect_is_followed(front, repository):
    repository.push({"model.safetensors": WEIGHTS})
    front.redirects = False
    manifest = resolve(front, repository)
    (file,) = manifest.files
    source = open_source(parse_ref(manifest.origin), Settings())
    front.redirects = True
    with pytest.raises(CredentialsExpired, match="redirects"):
        read(source, file, ByteRange(0, 10))
    assert read(source, file, ByteRange(0, 10)).body == WEIGHTS[:10]


def test_the_address_of_a_layer_is_not_shown(front, repository):
    repository.push({"model.safetensors": WEIGHTS})
    ref = ref_of(front, repository)
    source = open_source(ref, Settings())
    (file,) = source.resolve(ref).files
    target = source.locate(file)
    assert "signature=1" in target.path
    assert "signature" not in repr(target)


# No ranges


@pytest.mark.parametrize("redirects", [True, False])
def test_a_registry_without_ranges_is_read_in_one_stream(front, repository, engine, redirects):
    front.ranges, front.redirects = False, redirects
    repository.push({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    assert [file.ranges for file in resolve(front, repository).files] == [True, False]
    path = engine.pull(ref_of(front, repository)).path
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "config.json").read_bytes() == CONFIG


def test_a_tar_of_a_registry_without_ranges_is_unpacked(front, repository):
    front.ranges = False
    repository.manifest([repository.blob(tar_of({"model.safetensors": WEIGHTS}), TAR)])
    (archive,) = resolve(front, repository).archives
    assert archive.compression is Compression.NONE
    assert not archive.layer.ranges


# Altered on the way


def test_altered_bytes_of_a_layer_are_found_out(front, repository, engine):
    repository.push({"model.safetensors": WEIGHTS})
    front.alter = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DigestMismatch):
        engine.pull(ref_of(front, repository))


def test_altered_bytes_between_the_members_of_a_tar_are_found_out(front, repository, engine):
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    repository.manifest([repository.blob(tar_of(files), TAR)])
    front.alter = lambda content: content[:-1] + b"\1"
    with pytest.raises(DigestMismatch):
        engine.pull(ref_of(front, repository))


def test_altered_bytes_of_a_member_of_a_tar_are_found_out(front, repository, engine):
    repository.manifest([repository.blob(tar_of({"model.safetensors": WEIGHTS}), TAR)])
    middle = BLOCK_BYTES // 2
    front.alter = lambda content: (
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    )
    with pytest.raises(DigestMismatch):
        engine.pull(ref_of(front, repository))


def test_a_layer_of_another_size_than_its_manifest_says_is_refused(front, repository):
    repository.push({"model.safetensors": WEIGHTS})
    front.alter = lambda content: content[:-1]
    with pytest.raises(SourceRefused, match="its manifest says"):
        resolve(front, repository)
