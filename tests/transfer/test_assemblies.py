"""One checksum over several blobs: nothing is shown before all of it is here and right.

The layer is played by bytes on a scripted server; its members are windows into it, as a registry's
uncompressed tar has them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from modelcache.agent import Engine, pulling
from modelcache.domain.manifests import (
    Algorithm,
    Assembly,
    Checksum,
    File,
    Manifest,
    Pin,
    blob_id,
)
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import DigestMismatch, Forbidden, ModelcacheError
from modelcache.sources.source import HttpTarget
from tests.agent.support import CHUNK_BYTES, random_bytes, settings, tree
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile

HEADER = random_bytes(512, 1)
PADDING = bytes(300)
MEMBERS = {
    "b.safetensors": random_bytes(3 * CHUNK_BYTES + 212, 2),
    "a.safetensors": random_bytes(2 * CHUNK_BYTES, 3),
    "c.safetensors": random_bytes(CHUNK_BYTES + 1, 4),
}
PIECES = [piece for name, data in MEMBERS.items() for piece in (HEADER, name, PADDING)]
LAYER = b"".join(MEMBERS[piece] if isinstance(piece, str) else piece for piece in PIECES)


class LayerSource:
    """A source of one layer; `digest` is what it publishes."""

    def __init__(self, url: str, digest: str) -> None:
        self._url = urlsplit(url)
        self._digest = digest

    def resolve(self, ref: Ref) -> Manifest:
        files = [self._file(name) for name in MEMBERS]
        blobs = {file.path: file.blob for file in files}
        pieces = tuple(blobs[p] if isinstance(p, str) else p for p in PIECES)
        checksum = Checksum(Algorithm.SHA256, self._digest)
        assembly = Assembly("layer sha256:…", checksum, pieces)
        return Manifest.of(str(ref), files, assemblies=[assembly])

    def _file(self, name: str) -> File:
        pin = Pin(version=self._digest)
        size = len(MEMBERS[name])
        blob = blob_id(origin="layer", key=name, size_bytes=size, pin=pin, checksums=())
        return File(name, size, name, blob, pin)

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        del fresh
        window = (LAYER.index(MEMBERS[file.key]), len(LAYER))
        host, port = self._url.hostname or "", self._url.port or 0
        return HttpTarget(host, port, False, "/layer", (), 60.0, window=window)

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """Nothing to compare."""

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        del file, headers
        return ()

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        del headers, body
        return Forbidden(f"{file.path}: {status}")


class Registry:
    """The layer behind a server; `change` may spoil an answer."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.digest = hashlib.sha256(LAYER).hexdigest()
        self.sent_bytes = 0
        self.spoil: list[int] = []  # offsets whose byte is wrong in the next answer
        self.answers_left: int | None = None  # before everything is forbidden
        server.answers["/layer"] = self._answer

    def _answer(self, asked: Asked) -> Reply:
        if self.answers_left is not None:
            if not self.answers_left:
                return Reply(403)
            self.answers_left -= 1
        spoiled = bytearray(LAYER)
        first, last = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
        for offset in list(self.spoil):
            if first <= offset <= last:
                spoiled[offset] ^= 1
                self.spoil.remove(offset)
        self.sent_bytes += last + 1 - first
        return StaticFile(bytes(spoiled))(asked)

    def source(self, *_: object) -> LayerSource:
        return LayerSource(self.server.url(), self.digest)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with ScriptedServer() as server:
        played = Registry(server)
        monkeypatch.setattr(pulling, "open_source", played.source)
        yield played


def pull(store: Path, **transfer: int) -> dict[str, bytes]:
    with Engine(settings(store, **transfer)) as engine:
        return tree(engine.pull(parse_ref("https://registry/layer")).path)


def blobs(store: Path) -> list[Path]:
    return [path for path in (store / "blobs").rglob("*") if path.is_file()]


def test_members_arrive_and_the_layer_vouches_for_them(registry: Registry, tmp_path: Path):
    assert pull(tmp_path) == MEMBERS
    with Engine(settings(tmp_path)) as engine:
        (model,) = engine.models()
    assert set(model.verified) == {"sha256-layer"}
    assert registry.sent_bytes == sum(map(len, MEMBERS.values()))


def test_a_wrong_byte_in_any_member_is_fetched_again(registry: Registry, tmp_path: Path):
    registry.spoil = [LAYER.index(MEMBERS["a.safetensors"]) + CHUNK_BYTES + 7]
    assert pull(tmp_path) == MEMBERS
    assert registry.sent_bytes == 2 * sum(map(len, MEMBERS.values()))


def test_a_layer_that_stays_wrong_is_named_and_shows_nothing(registry: Registry, tmp_path: Path):
    registry.digest = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(DigestMismatch, match="layer sha256:…"):
        pull(tmp_path)
    assert not blobs(tmp_path)
    assert not list((tmp_path / "snapshots").iterdir())


def test_an_interrupted_layer_goes_on_where_it_was(registry: Registry, tmp_path: Path):
    registry.answers_left = 3
    with pytest.raises(Forbidden):
        pull(tmp_path, connections_max=1)
    kept = sum(_done(tmp_path))
    assert kept
    registry.answers_left = None
    before = registry.sent_bytes
    assert pull(tmp_path) == MEMBERS
    assert registry.sent_bytes - before == sum(map(len, MEMBERS.values())) - kept


def _done(store: Path) -> Iterator[int]:
    with Engine(settings(store)) as engine:
        for model in engine.models():
            yield model.present_bytes


def test_a_member_that_is_here_is_hashed_from_the_store(registry: Registry, tmp_path: Path):
    pull(tmp_path)
    lost = registry.source().resolve(parse_ref("https://registry/layer")).files[0]
    with Engine(settings(tmp_path)) as engine, engine.store.mutex():
        engine.store.drop_blob(lost.blob)
    before = registry.sent_bytes
    assert pull(tmp_path) == MEMBERS
    assert registry.sent_bytes - before == lost.size_bytes


def test_two_who_pull_the_same_layer_share_one_download(registry: Registry, tmp_path: Path):
    results: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(pull(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [MEMBERS] * 4
    assert registry.sent_bytes == sum(map(len, MEMBERS.values()))
