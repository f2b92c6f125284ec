"""Whole pulls of what registries hold in tars made by other tools: the very files of a raw push."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from modelcache.agent import Engine, Snapshot
from modelcache.config import BLOCK_BYTES
from modelcache.domain.refs import parse_ref
from tests.agent.support import random_bytes, settings, tree
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable, find_program
from tests.sources.artifacts import Repository, tar_of
from tests.sources.test_oci_images import run

FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": random_bytes(5 * BLOCK_BYTES + 77, 1),
    "sub/model-00002-of-00002.safetensors": random_bytes(2 * BLOCK_BYTES + 1, 2),
}
TAR = "application/vnd.cncf.model.weight.v1.tar"
CONFIG = "application/vnd.cncf.model.config.v1+json"
_numbers = count()


@pytest.fixture
def repository(docker_registry: DockerRegistry, tmp_path: Path) -> Repository:
    try:
        return Repository(docker_registry.name, f"packed/m{next(_numbers)}", tmp_path / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


def pull(ref: str, store: Path) -> Snapshot:
    with Engine(settings(store)) as engine:
        return engine.pull(parse_ref(f"oci://{ref}"))


def images(docker_registry: DockerRegistry, tmp_path: Path, *layers: dict[str, bytes]) -> str:
    """An image of these layers, appended by crane, which compresses them."""
    try:
        crane = find_program("crane", "run `python -m tests.tools`")
    except ServerUnavailable as error:
        pytest.skip(str(error))
    ref = f"{docker_registry.name}/packed/m{next(_numbers)}:latest"
    paths = []
    for number, members in enumerate(layers):
        path = tmp_path / f"layer-{number}.tar"
        path.write_bytes(tar_of({f"models/{name}": data for name, data in members.items()}))
        paths += ["--new_layer", str(path)]
    run(crane, "append", "--insecure", *paths, "--new_tag", ref)
    return ref


def test_a_folder_pushed_by_oras_arrives_and_a_second_pull_fetches_nothing(repository, tmp_path):
    folder = tmp_path / "oras" / "llama"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    repository.run("push", repository.ref(), "llama", folder=tmp_path / "oras")
    first = pull(repository.ref(), tmp_path / "store")
    assert tree(first.path) == {f"llama/{name}": data for name, data in FILES.items()}
    second = pull(repository.ref(), tmp_path / "store")
    assert (second.path, second.fetched_bytes) == (first.path, 0)


def test_an_image_of_crane_holds_the_same_model_as_a_raw_push(
    repository, docker_registry, tmp_path
):
    repository.push(FILES)
    raw = pull(repository.ref(), tmp_path / "store")
    stale = {"config.json": b'{"old": 1}', "old.bin": b"old"}
    above = {**FILES, ".wh.old.bin": b""}
    packed = pull(images(docker_registry, tmp_path, stale, above), tmp_path / "store")
    assert tree(packed.path) == FILES
    assert packed.model_id == raw.model_id


def test_the_members_of_an_uncompressed_tar_arrive_in_ranges(repository, tmp_path):
    layer = repository.blob(tar_of(FILES), TAR)
    repository.manifest([layer], config_type=CONFIG)
    snapshot = pull(repository.ref(), tmp_path / "store")
    assert tree(snapshot.path) == FILES
    assert snapshot.report is not None
    assert set(snapshot.report.verified) == {"sha256", "sha256-layer"}
    assert not snapshot.report.unpacked_bytes
