"""`push` as a user types it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.support import tree
from tests.main.conftest import FILES
from tests.main.support import Shell, finish, wait_until
from tests.servers.docker_registry import DockerRegistry
from tests.servers.pliant_registry import Mishap, PliantRegistry


@pytest.fixture
def pliant() -> Iterator[PliantRegistry]:
    with PliantRegistry() as running:
        yield running


def test_a_push_prints_the_ref_and_tells_the_rest(
    shell: Shell, model: Path, docker_registry: DockerRegistry
):
    (model / ".cache").mkdir()
    ref = f"oci://{docker_registry.name}/cli/model:v1"
    done = shell.run("push", model, ref)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{ref}@sha256:")
    assert done.out.count("\n") == 1
    assert "left out, because hidden: .cache" in done.err
    assert "pushed 4 files, 11.5 MB" in done.err
    assert "before" not in done.err
    pulled = shell.run("pull", done.out.strip(), "-q")
    assert pulled.code == 0, pulled.err
    assert tree(Path(pulled.out.strip())) == FILES
    (model / "config.json").write_text('{"changed": true}')
    again = shell.call("push", model, ref)
    assert "11.5 MB were there already" in again.err
    assert f"the tag showed {done.out.strip().rpartition('@')[2]} before" in again.err


def test_json_has_every_layer(shell: Shell, model: Path, pliant: PliantRegistry):
    ref = f"oci://{pliant.name}/x/model:v1"
    done = shell.call("push", model, ref, "--json", "--exclude", "b.safetensors")
    assert (done.code, done.err) == (0, "")
    told = done.json
    assert told["reference"] == f"{ref}@{told['digest']}"
    assert told["previous"] is None
    assert [layer["path"] for layer in told["layers"]] == [
        "a.safetensors",
        "config.json",
        "sub/vocab.txt",
    ]
    assert {layer["how"] for layer in told["layers"]} == {"sent"}
    assert told["sent_bytes"] >= sum(layer["size_bytes"] for layer in told["layers"])
    again = shell.call("push", model, ref, "--json", "--exclude", "b.safetensors").json
    assert (again["previous"], again["sent_bytes"]) == (told["digest"], 0)


def test_quiet_says_only_the_ref(shell: Shell, model: Path, pliant: PliantRegistry):
    done = shell.call("push", model, f"oci://{pliant.name}/x/model:v1", "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("oci://")


def test_options_reach_the_manifest(shell: Shell, model: Path, pliant: PliantRegistry):
    ref = f"oci://{pliant.name}/x/model:v1"
    options = ["--layers", "tar", "--annotation", "a=b=c", "--annotation", "d=", "--jobs", "1"]
    assert shell.call("push", model, ref, *options).code == 0
    manifest = json.loads(pliant.manifests["v1"])
    assert manifest["annotations"] == {"a": "b=c", "d": ""}
    assert all(layer["mediaType"].endswith(".tar") for layer in manifest["layers"])
    assert shell.call("push", model, ref, "--format", "oras").code == 0
    manifest = json.loads(pliant.manifests["v1"])
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/octet-stream"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "zip"], "--format 'zip' is not known"),
        (["--layers", "zip"], "--layers 'zip' is not known"),
        (["--format", "oras", "--layers", "tar"], "--layers tar is for"),
        (["--jobs", "0"], "--jobs must be 1 to"),
        (["--annotation", "x"], "--annotation 'x' is not KEY=VALUE"),
        (["--annotation", "=x"], "--annotation '=x' is not KEY=VALUE"),
        (["--mount-from", "a/b:v1"], "--mount-from 'a/b:v1' names a tag"),
        (["--mount-from", "A/B"], "is not an OCI name"),
        (["--chunk-size", "much"], "'much' is not a size"),
    ],
)
def test_options_that_cannot_be(shell: Shell, model: Path, options: list[str], words: str):
    done = shell.call("push", model, "oci://127.0.0.1:9/x/model:v1", *options)
    assert done.code == 2
    assert words in done.complaint


@pytest.mark.parametrize("ref", ["oci://127.0.0.1:9/x/m@sha256:" + 64 * "a", "s3://b/m", "x/m:v1"])
def test_refs_that_cannot_be(shell: Shell, model: Path, ref: str):
    done = shell.call("push", model, ref)
    assert done.code == 2
    assert done.complaint


def test_what_is_not_there(shell: Shell):
    done = shell.call("push", "no-such-model", "oci://127.0.0.1:9/x/m:v1")
    assert done.code == 1
    assert "neither a file or directory nor a model" in done.complaint
    assert not shell.store.exists()


def test_a_refusal_is_one_line_and_a_json_error(shell: Shell, model: Path, pliant: PliantRegistry):
    pliant.plan = lambda asked: (
        Mishap(status=403, code="DENIED") if asked.method == "POST" else None
    )
    ref = f"oci://{pliant.name}/x/model:v1"
    done = shell.call("push", model, ref)
    assert (done.code, done.out) == (1, "")
    assert f"docker login {pliant.name}" in done.complaint
    assert shell.call("push", model, ref, "--json").json["error"]["code"] == "forbidden"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_push_shows_nothing(
    shell: Shell, model: Path, pliant: PliantRegistry, number: signal.Signals
):
    stuck = Mishap(status=503, headers={"Retry-After": "5"})
    pliant.plan = lambda asked: stuck if asked.method == "PATCH" else None
    pushing = shell.start("push", str(model), f"oci://{pliant.name}/x/model:v1")
    wait_until(lambda: pliant.methods("PATCH"))
    pushing.send_signal(number)
    done = finish(pushing)
    assert (done.code, done.out) == (130, "")
    assert "stopped; what was sent is not shown under the tag" in done.complaint
    assert not pliant.manifests


def test_a_model_of_the_store_is_pushed_by_its_ref(
    shell: Shell, model: Path, pliant: PliantRegistry
):
    ref = f"file://{model}"
    pulled = shell.call("pull", ref, "--json").json
    target = f"oci://{pliant.name}/x/model:v1"
    by_path = shell.call("push", model, target, "-q")
    by_id = shell.call("push", pulled["model_id"][:12], target, "--json")
    assert by_id.code == 0, by_id.err
    assert by_id.json["reference"] == by_path.out.strip()
    assert by_id.json["sent_bytes"] == 0
