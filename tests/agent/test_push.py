"""Pushes into real registries, looked at with tools that are not ours."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent import Engine, digests
from modelcache.agent.digests import Digests
from modelcache.agent.gathering import gather, opened
from modelcache.agent.pushes import How, PushOptions, PushReport
from modelcache.agent.pushing import HASH_FIRST_BYTES, Push
from modelcache.domain.refs import FileFilter, parse_ref
from modelcache.errors import (
    Cancelled,
    DigestMismatch,
    Forbidden,
    InvalidRef,
    NoCredentials,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
)
from modelcache.sources.oci import publishing, uploads
from modelcache.sources.oci import registry as registries
from modelcache.sources.oci.packing import LayerForm, PushFormat
from modelcache.transfer.report import Phase, Progress
from tests.agent.support import pull, random_bytes, settings, tree
from tests.servers.crane_registry import CraneRegistry
from tests.servers.docker_registry import DockerRegistry
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.pliant_registry import Asked, Mishap, PliantRegistry
from tests.servers.process import ServerUnavailable, find_program
from tests.sources.artifacts import Repository

FILES = {
    "README.md": b"# A model\n",
    "a.safetensors": random_bytes(HASH_FIRST_BYTES + (2 << 20) + 5, 1),
    "b.safetensors": random_bytes(HASH_FIRST_BYTES + 1, 2),
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "sub/vocab.txt": b"words\n" * 50,
}
LARGE = ("a.safetensors", "b.safetensors")
TOTAL = sum(map(len, FILES.values()))
NEXT = iter(range(1000))


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "BACKOFF_S", 0.0)
    monkeypatch.setattr(uploads, "BACKOFF_S", 0.0)


@pytest.fixture(params=["docker", "crane"])
def registry(request: pytest.FixtureRequest) -> DockerRegistry | CraneRegistry:
    return request.getfixturevalue(f"{request.param}_registry")


@pytest.fixture
def pliant() -> Iterator[PliantRegistry]:
    with PliantRegistry() as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def name() -> str:
    """A repository that nobody has pushed to."""
    return f"pushes/model-{next(NEXT)}"


class Pusher:
    """Pushes as one user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, files: Path, ref: str, **more: Any) -> PushReport:
        environment = more.pop("environment", {})
        progress, cancel = more.pop("progress", None), more.pop("cancel", None)
        push = Push(
            settings(self.folder / "store"),
            parse_ref(ref),
            PushOptions(**more),
            Digests(self.folder),
            progress=progress,
            cancel=cancel,
            environment=environment,
        )
        return push.run(gather(files, FileFilter()).files)


@pytest.fixture
def push(tmp_path: Path) -> Pusher:
    return Pusher(tmp_path / "user")


@pytest.fixture
def stranger(tmp_path: Path) -> Pusher:
    """Somebody who remembers nothing of earlier pushes."""
    return Pusher(tmp_path / "stranger")


def ways(report: PushReport) -> dict[str, How]:
    return {layer.name: layer.how for layer in report.layers}


def test_oras_and_skopeo_read_what_was_pushed(registry, model, push, name, tmp_path):
    report = push(model, f"oci://{registry.name}/{name}:v1", annotations={"who": "me"})
    assert report.reference == f"oci://{registry.name}/{name}:v1@{report.digest}"
    assert report.previous is None
    repository = Repository(registry.name, name, tmp_path / "oras")
    raw = repository.run("manifest", "fetch", repository.ref("v1"))
    assert f"sha256:{sha256(raw.encode()).hexdigest()}" == report.digest
    manifest = json.loads(raw)
    assert [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]] == [
        *FILES
    ]
    assert manifest["annotations"] == {"who": "me"}
    config = json.loads(
        repository.run(
            "blob", "fetch", "-o", "-", f"{registry.name}/{name}@{manifest['config']['digest']}"
        )
    )
    assert config["descriptor"] == {"name": name.rpartition("/")[2], "family": "llama"}
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    (tmp_path / "out").mkdir()
    repository.run("pull", repository.ref("v1"), folder=tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert skopeo(f"{registry.name}/{name}:v1") == raw


def skopeo(image: str) -> str:
    try:
        program = find_program("skopeo", "apt-get install skopeo")
    except ServerUnavailable as error:
        pytest.skip(str(error))
    command = [program, "inspect", "--raw", "--tls-verify=false", f"docker://{image}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("how", ["modelpack raw", "modelpack tar", "oras raw"])
def test_what_was_pushed_is_pulled(registry, model, push, name, how):
    ref = f"oci://{registry.name}/{name}:v1"
    packing, form = how.split()
    push(model, ref, packing=PushFormat(packing), form=LayerForm(form), chunk_bytes=1 << 20)
    snapshot = pull(ref, push.folder / "store", stall_timeout_s=20.0)
    assert tree(snapshot.path) == FILES


def test_a_second_push_sends_nothing_and_shows_the_same(registry, model, push, name):
    ref = f"oci://{registry.name}/{name}:v1"
    first = push(model, ref)
    assert {name: how for name, how in ways(first).items() if name in LARGE} == dict.fromkeys(
        LARGE, How.SENT
    )
    second = push(model, ref)
    assert (second.digest, second.previous) == (first.digest, first.digest)
    assert second.sent_bytes == 0
    assert second.present_bytes == TOTAL


def test_somebody_else_sends_nothing_either(registry, model, push, stranger, name):
    """The tag shows layers of the same sizes, so they are hashed before they are sent."""
    first = push(model, f"oci://{registry.name}/{name}:v1")
    second = stranger(model, f"oci://{registry.name}/{name}:v1")
    assert second.digest == first.digest
    assert second.sent_bytes == 0


def test_a_changed_file_is_sent_alone(docker_registry, model, push, name):
    ref = f"oci://{docker_registry.name}/{name}:v1"
    first = push(model, ref)
    (model / "b.safetensors").write_bytes(FILES["a.safetensors"][::-1])
    second = push(model, ref)
    assert second.previous == first.digest != second.digest
    assert [name for name, how in ways(second).items() if how is How.SENT] == ["b.safetensors"]
    assert second.sent_bytes == len(FILES["a.safetensors"])


def test_times_owners_and_modes_change_nothing(docker_registry, model, push, stranger, name):
    one = push(model, f"oci://{docker_registry.name}/{name}:v1")
    for path in model.rglob("*"):
        path.chmod(0o755)
        os.utime(path, ns=(0, 0))
    other = stranger(model, f"oci://{docker_registry.name}/{name}:v2", jobs=1)
    assert other.digest == one.digest


def test_a_date_is_taken_from_the_environment_only(docker_registry, model, push, name, tmp_path):
    dated = {"SOURCE_DATE_EPOCH": "86400"}
    ref = f"oci://{docker_registry.name}/{name}:v1"
    assert push(model, ref).digest != push(model, ref, environment=dated).digest
    repository = Repository(docker_registry.name, name, tmp_path / "oras")
    manifest = json.loads(repository.run("manifest", "fetch", repository.ref("v1")))
    assert manifest["annotations"] == {"org.opencontainers.image.created": "1970-01-02T00:00:00Z"}


def test_layers_of_another_repository_are_mounted(docker_registry, model, stranger, push, name):
    push(model, f"oci://{docker_registry.name}/{name}:v1")
    report = stranger(model, f"oci://{docker_registry.name}/{name}-copy:v1", mount_from=(name,))
    assert report.sent_bytes == 0
    assert report.mounted_bytes == TOTAL


def test_where_a_layer_was_pushed_before_is_remembered(
    docker_registry, model, push, name, monkeypatch
):
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    push(model, f"oci://{docker_registry.name}/{name}:v1")
    report = push(model, f"oci://{docker_registry.name}/{name}-copy:v1")
    assert set(ways(report).values()) == {How.MOUNTED}


def test_a_remembered_digest_is_asked_for_before_anything_is_read(
    docker_registry, model, push, name, monkeypatch
):
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    push(model, f"oci://{docker_registry.name}/{name}:v1")
    report = push(model, f"oci://{docker_registry.name}/{name}:v2")  # a tag that shows no sizes
    assert set(ways(report).values()) == {How.PRESENT}


def test_a_model_of_the_store_goes_back_by_its_digests(
    docker_registry, model, push, name, tmp_path
):
    ref = f"oci://{docker_registry.name}/{name}:v1"
    first = push(model, ref)
    chosen = settings(tmp_path / "store", stall_timeout_s=20.0)
    with Engine(chosen) as engine:
        engine.pull(parse_ref(ref))
    with opened(ref, FileFilter(), chosen.store, hidden=False, follow=False) as gathered:
        assert all(file.digest for file in gathered.files)
        again = Push(
            chosen,
            parse_ref(f"oci://{docker_registry.name}/{name}:v2"),
            PushOptions(),
            Digests(tmp_path / "other"),
            environment={},
        ).run(gathered.files)
    assert again.digest == first.digest
    assert again.sent_bytes == 0


@pytest.mark.parametrize("chunk_bytes", [0, 1 << 20])
def test_connections_that_break_in_the_middle_are_survived(
    registry, model, push, name, chunk_bytes
):
    left = [Fault(cut_at=3 << 20), Fault(cut_at=0), Fault(cut_at=700_000)]
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return left.pop() if left and request.method == "PATCH" else None

    with FaultProxy(registry.url, plan) as proxy:
        place = proxy.url.removeprefix("http://")
        report = push(model, f"oci://{place}/{name}:v1", chunk_bytes=chunk_bytes)
    assert not left
    snapshot = pull(f"oci://{registry.name}/{name}:v1", push.folder / "store", stall_timeout_s=20.0)
    assert tree(snapshot.path) == FILES
    assert report.sent_bytes >= TOTAL


def test_passwords_are_asked_for_and_used(model, push, name, tmp_path, monkeypatch):
    try:
        running = DockerRegistry(passwords=True)
    except ServerUnavailable as error:
        pytest.skip(str(error))
    with running as registry:
        ref = f"oci://{registry.name}/{name}:v1"
        with pytest.raises(NoCredentials, match=f"docker login {registry.name}"):
            push(model, ref)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        login(tmp_path, registry, "wrong")
        with pytest.raises(Forbidden, match=f"docker login {registry.name}"):
            push(model, ref)
        login(tmp_path, registry, registry.password)
        assert push(model, ref).sent_bytes >= TOTAL


def login(folder: Path, registry: DockerRegistry, password: str) -> None:
    pair = base64.b64encode(f"{registry.username}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.name: {"auth": pair}}}))


def test_a_read_only_registry_says_so(model, push, name):
    try:
        running = DockerRegistry(read_only=True)
    except ServerUnavailable as error:
        pytest.skip(str(error))
    with running as registry, pytest.raises(SourceRefused, match="read-only"):
        push(model, f"oci://{registry.name}/{name}:v1")


def test_nobody_there_is_one_line(model, push):
    with pytest.raises(SourceUnavailable, match="connection refused"):
        push(model, "oci://127.0.0.1:9/x/model:v1")


def test_the_manifest_comes_last_and_only_if_all_layers_are_there(pliant, model, push):
    def plan(asked: Asked) -> Mishap | None:
        if asked.method in {"PATCH", "PUT"} and int(asked.headers["content-length"]) > 1 << 20:
            return Mishap(status=403, code="DENIED")
        return None

    pliant.plan = plan
    with pytest.raises(Forbidden):
        push(model, f"oci://{pliant.name}/x/model:v1")
    assert not pliant.manifests
    pliant.plan = lambda _: None
    push(model, f"oci://{pliant.name}/x/model:v1")
    assert pliant.asked[-2].method == "PUT"
    assert pliant.asked[-2].path.endswith("/manifests/v1")


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_a_registry_that_shows_another_manifest_is_found_out(pliant, model, push, method):
    lie = Mishap(alter={"Docker-Content-Digest": "sha256:" + 64 * "c"})
    pliant.plan = lambda asked: (
        lie if asked.method == method and "/manifests/" in asked.path else None
    )
    with pytest.raises(DigestMismatch):
        push(model, f"oci://{pliant.name}/x/model:v1")


def test_a_registry_that_lost_a_layer_is_told_from_a_missing_repository(pliant, model, push):
    lost = Mishap(status=404, code="MANIFEST_BLOB_UNKNOWN")
    pliant.plan = lambda asked: (
        lost if asked.method == "PUT" and "/manifests/" in asked.path else None
    )
    with pytest.raises(SourceUnavailable, match="push again"):
        push(model, f"oci://{pliant.name}/x/model:v1")


def test_a_file_that_changes_leaves_the_tag_alone(pliant, model, push):
    def plan(asked: Asked) -> None:
        if asked.method == "PATCH":
            os.utime(model / "a.safetensors", ns=(1, 1))

    pliant.plan = plan
    with pytest.raises(OriginChanged, match=r"a\.safetensors"):
        push(model, f"oci://{pliant.name}/x/model:v1", jobs=1)
    assert not pliant.manifests


def test_stopping_leaves_the_tag_alone(pliant, model, push):
    cancel = threading.Event()

    def plan(asked: Asked) -> None:
        if asked.method == "PATCH":
            cancel.set()

    pliant.plan = plan
    with pytest.raises(Cancelled):
        push(model, f"oci://{pliant.name}/x/model:v1", cancel=cancel)
    assert not pliant.manifests


def test_progress_goes_from_nothing_to_all(pliant, model, push):
    seen: list[Progress] = []
    push(model, f"oci://{pliant.name}/x/model:v1", progress=seen.append)
    assert seen[0].phase is Phase.RESOLVING
    assert seen[0].files_total == 0  # it may still be stopped at once
    assert seen[-1].phase is Phase.DONE
    assert (seen[-1].done_bytes, seen[-1].files_done) == (TOTAL, len(FILES))
    assert Phase.PUSHING in {moment.phase for moment in seen}


def test_a_manifest_beyond_what_registries_take_is_refused_before_anything_is_sent(
    pliant, model, push, monkeypatch
):
    monkeypatch.setattr(publishing, "DOCUMENT_BYTES_MAX", 500)
    with pytest.raises(SourceRefused, match="too many files"):
        push(model, f"oci://{pliant.name}/x/model:v1")
    assert not pliant.asked


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("s3://bucket/m", "cannot be pushed to"),
        ("oci://r.example/m@sha256:" + 64 * "a", "digest is what a push results in"),
        ("oci://r.example/m:v1?include=*.bin", "takes no filter"),
        ("oci://r.example/m:v1?platform=linux/amd64", "'platform'"),
    ],
)
def test_refs_that_cannot_be_pushed_to(model, push, ref, words):
    with pytest.raises(InvalidRef, match=words):
        push(model, ref)


def test_a_ref_without_a_tag_means_latest(pliant, model, push):
    report = push(model, f"oci://{pliant.name}/x/model")
    assert list(pliant.manifests) == ["latest"]
    assert ":latest@sha256:" in report.reference
