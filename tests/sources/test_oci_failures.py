"""Registries that refuse, lie or are none: one clear line each, and nothing secret in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from modelcache.agent import Engine
from modelcache.config import BLOCK_BYTES, OciSettings, Settings, TransferSettings
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    DigestMismatch,
    Forbidden,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.oci import OciSource, registry
from modelcache.sources.oci.documents import DOCUMENT_BYTES_MAX
from tests.servers.docker_registry import DockerRegistry
from tests.servers.process import ServerUnavailable
from tests.sources.artifacts import MANIFEST, TITLE, Repository, descriptor
from tests.sources.scripted import Asked, Reply, ScriptedServer

_numbers = count()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def repository(docker_registry: DockerRegistry, tmp_path: Path) -> Repository:
    try:
        return Repository(docker_registry.name, f"failing/m{next(_numbers)}", tmp_path / "oras")
    except ServerUnavailable as error:
        pytest.skip(str(error))


def resolve(ref: str) -> Manifest:
    parsed = parse_ref(f"oci://{ref}")
    return OciSource(parsed, OciSettings(), TransferSettings()).resolve(parsed)


def scripted(server: ScriptedServer) -> str:
    return f"127.0.0.1:{server.port}/team/model:v1"


def answers(server: ScriptedServer, document: Any, **headers: str) -> None:
    """Serve this as the manifest."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    sent = {"Content-Type": MANIFEST} | {n.replace("_", "-"): v for n, v in headers.items()}
    server.answers["/v2/team/model/manifests/v1"] = lambda _: Reply(200, sent, body)


def manifest(*layers: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "config": descriptor(b"{}", "application/x"), "layers": layers}


# What is not there


def test_a_tag_that_is_not_there_is_told_from_a_repository_that_is_not(repository):
    repository.push({"config.json": b"{}"})
    with pytest.raises(NotFound, match="no such tag or digest") as caught:
        resolve(repository.ref("absent"))
    assert f"{repository.name}:absent" in caught.value.message
    with pytest.raises(NotFound, match="no such"):
        resolve(f"{repository.registry}/never/pushed:v1")


def test_a_missing_layer_is_named(repository):
    content = b"w" * (BLOCK_BYTES + 1)
    repository.push({"config.json": b"{}", "model.safetensors": content})
    found = resolve(repository.ref())
    layer = next(file for file in found.files if file.path == "model.safetensors")
    blob = f"{repository.registry}/{repository.name}@{layer.key}"
    repository.run("blob", "delete", "--force", blob)
    with pytest.raises(NotFound, match="layer is missing from the registry"):
        resolve(repository.ref())
    source = OciSource(parse_ref(found.origin), OciSettings(), TransferSettings())
    with pytest.raises(NotFound, match=r"model\.safetensors of "):
        source.locate(layer, fresh=True)


def test_a_missing_small_layer_fails_the_pull_by_its_name(repository, tmp_path):
    repository.push({"config.json": b"{}", "other.json": b"[]"})
    (layer, _) = resolve(repository.ref()).files
    blob = f"{repository.registry}/{repository.name}@{layer.key}"
    repository.run("blob", "delete", "--force", blob)
    settings = Settings(transfer=TransferSettings(retries_max=1)).with_store(tmp_path / "store")
    with Engine(settings) as engine, pytest.raises(NotFound, match=r"config\.json of "):
        engine.pull(parse_ref(f"oci://{repository.ref()}"))


def test_a_host_without_an_address_is_not_found():
    with pytest.raises(NotFound, match="no such host"):
        resolve("registry.invalid/team/model:v1")


def test_a_registry_that_is_down_is_unavailable():
    with pytest.raises(SourceUnavailable, match="connection refused"):
        resolve("127.0.0.1:1/team/model:v1")


# Documents that are not what they should be


def test_a_manifest_that_was_altered_is_found_out_by_its_digest(server):
    content = json.dumps(manifest()).encode()
    digest = "sha256:" + sha256(content).hexdigest()
    altered = content.replace(b"2", b"3")
    server.answers["*"] = lambda _: Reply(200, {"Content-Type": MANIFEST}, altered)
    with pytest.raises(DigestMismatch, match="altered"):
        resolve(f"127.0.0.1:{server.port}/team/model@{digest}")


def test_a_manifest_is_compared_with_the_digest_that_is_published_with_it(server):
    answers(server, manifest(), Docker_Content_Digest=f"sha256:{'0' * 64}")
    with pytest.raises(DigestMismatch):
        resolve(scripted(server))


def test_a_web_page_is_called_by_its_name(server):
    answers(server, b"<html>Log in</html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(SourceRefused, match="a web page instead of a manifest"):
        resolve(scripted(server))
    page = Reply(404, {"Content-Type": "text/html"}, b"<html>")
    server.answers["/v2/team/model/manifests/v1"] = lambda _: page
    with pytest.raises(NotFound, match="is it an OCI registry"):
        resolve(scripted(server))


def test_a_web_page_in_place_of_a_layer_is_called_by_its_name(server):
    layer = descriptor(b"w" * (BLOCK_BYTES + 1), "application/x", {TITLE: "w"})
    answers(server, manifest(layer))
    page = Reply(200, {"Content-Type": "text/html"}, b"<html>Log in</html>")
    server.answers[f"/v2/team/model/blobs/{layer['digest']}"] = lambda _: page
    with pytest.raises(SourceRefused, match="a web page instead of the layer"):
        resolve(scripted(server))


GOOD = descriptor(b"w", "application/x", {TITLE: "w"})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"not JSON", "not JSON"),
        (b"[]", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({"schemaVersion": 2, "blobs": []}, "neither"),
        ({"schemaVersion": 2, "layers": 7}, "neither"),
        (manifest("text"), "malformed"),
        (manifest({"digest": GOOD["digest"], "size": 1}), "malformed"),
        (manifest({**GOOD, "mediaType": "no slash"}), "malformed"),
        (manifest({**GOOD, "digest": "sha512:" + "0" * 128}), "not a sha256"),
        (manifest({**GOOD, "digest": "sha256:" + "0" * 63}), "not a sha256"),
        (manifest({**GOOD, "digest": "sha256:../../" + "0" * 58}), "not a sha256"),
        (manifest({**GOOD, "size": -1}), "no size"),
        (manifest({**GOOD, "size": True}), "no size"),
        (manifest({**GOOD, "size": 1 << 60}), "no size"),
        (manifest({**GOOD, "size": "1"}), "no size"),
        (b"{" + b" " * DOCUMENT_BYTES_MAX + b"}", "larger than 4 MiB"),
    ],
)
def test_malformed_documents_are_refused_with_the_reason(server, document, words):
    answers(server, document)
    with pytest.raises(SourceRefused, match=words):
        resolve(scripted(server))


def test_odd_annotations_and_platforms_are_no_obstacle(server):
    odd = {**GOOD, "annotations": {TITLE: "w", "x": 7, "y": None}, "platform": {"os": 7}}
    answers(server, manifest(odd))
    assert [file.path for file in resolve(scripted(server)).files] == ["w"]


# Refusals


def refusing(server: ScriptedServer, status: int, code: str = "", **headers: str) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "s3cret"}]}).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    server.answers["*"] = lambda _: Reply(status, sent, body)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "DENIED", Forbidden, "docker login"),
        (404, "NAME_UNKNOWN", NotFound, "no such repository"),
        (404, "MANIFEST_UNKNOWN", NotFound, "no such tag"),
        (404, "", NotFound, "does not exist"),
        (429, "TOOMANYREQUESTS", Throttled, "fewer requests"),
        (503, "", Throttled, "fewer requests"),
        (500, "", SourceUnavailable, "answered 500"),
        (418, "UNSUPPORTED", SourceRefused, "answered 418"),
    ],
)
def test_a_refusal_is_told_by_status_and_code(server, status, code, kind, words):
    refusing(server, status, code, Retry_After="3600")
    with pytest.raises(kind, match=words) as caught:
        resolve(scripted(server))
    assert "127.0.0.1" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_failures_in_passing_are_asked_again(server):
    layer = descriptor(b"w", "application/x", {TITLE: "w"})
    body = json.dumps(manifest(layer)).encode()

    def twice_broken(_: Asked) -> Reply:
        done = len(server.asked) > 2
        return Reply(200, {"Content-Type": MANIFEST}, body) if done else Reply(502)

    server.answers["*"] = twice_broken
    assert resolve(scripted(server)).files
    assert len(server.asked) == 3


def test_redirects_that_loop_end(server):
    server.answers["*"] = lambda asked: Reply(307, {"Location": asked.path + "?again=1"})
    with pytest.raises(SourceRefused, match="redirects more than") as caught:
        resolve(scripted(server))
    assert "again" not in caught.value.message


def test_a_document_over_a_proxy_is_asked_for_by_its_whole_address(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://user:p4ss@127.0.0.1:{server.port}")
    refusing(server, 404, "NAME_UNKNOWN")
    parsed = parse_ref("oci://registry.example:5000/team/model:v1?plain-http=1")
    source = OciSource(parsed, OciSettings(), TransferSettings())
    with pytest.raises(NotFound) as caught:
        source.resolve(parsed)
    (asked,) = server.asked
    assert asked.path == "http://registry.example:5000/v2/team/model/manifests/v1"
    assert asked.headers["proxy-authorization"].startswith("Basic ")
    assert "p4ss" not in caught.value.message


# While reading


@pytest.fixture
def located() -> tuple[OciSource, File]:
    ref = parse_ref("oci://127.0.0.1:1/team/model:v1")
    digest = f"sha256:{'1' * 64}"
    source = OciSource(ref, OciSettings(), TransferSettings())
    blob = f"sha256-{'1' * 64}"
    return source, File("w.bin", 10, digest, blob)  # type: ignore[arg-type]


def test_a_layer_under_another_digest_is_not_believed(located):
    source, file = located
    source.check_pin(file, {"docker-content-digest": file.key})
    source.check_pin(file, {"docker-content-digest": "sha512:abc"})
    source.check_pin(file, {})
    with pytest.raises(OriginChanged, match=r"w\.bin"):
        source.check_pin(file, {"docker-content-digest": f"sha256:{'2' * 64}"})


def test_a_layer_that_a_proxy_compressed_is_refused(located):
    source, file = located
    with pytest.raises(SourceRefused, match="compressed"):
        source.check_pin(file, {"content-encoding": "gzip"})


def test_a_refusal_of_a_layer_names_the_file(located):
    source, file = located
    body = json.dumps({"errors": [{"code": "BLOB_UNKNOWN"}]}).encode()
    error = source.refusal(file, 404, {}, body)
    assert isinstance(error, NotFound)
    assert "w.bin of 127.0.0.1:1/team/model" in error.message
    assert "missing" in error.message


def test_credentials_that_a_registry_wants_only_for_layers_are_asked_for(server):
    layer = descriptor(b"w" * (BLOCK_BYTES + 1), "application/x", {TITLE: "w"})
    answers(server, manifest(layer))
    basic = Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
    server.answers[f"/v2/team/model/blobs/{layer['digest']}"] = lambda _: basic
    with pytest.raises(NoCredentials, match="docker login"):
        resolve(scripted(server))
