"""Pulls through mirrors: which place gives the bytes, and what is said when one does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.agent import Engine, Snapshot
from modelcache.config import MirrorSettings
from modelcache.domain.refs import parse_ref
from modelcache.errors import NotFound
from tests.agent.support import random_bytes, settings, tree
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile

DATA = random_bytes(9_000_000, 5)


@pytest.fixture
def origin() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.answers["/m/weights.bin"] = StaticFile(DATA, {"ETag": '"v1"'})
        yield server


def pull(store: Path, ref: str, *rewrites: str, only: bool = False) -> Snapshot:
    chosen = replace(settings(store), mirrors=MirrorSettings(rewrites, only))
    with Engine(chosen) as engine:
        return engine.pull(parse_ref(ref))


def test_a_mirror_spares_the_origin(origin: ScriptedServer, tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "weights.bin").write_bytes(DATA)
    ref = origin.url("/m/weights.bin")
    snapshot = pull(tmp_path / "store", ref, f"{origin.url('/m/')} => file://{mirror}/")
    assert tree(snapshot.path) == {"weights.bin": DATA}
    assert snapshot.ref == ref
    assert not origin.asked


def test_a_mirror_without_the_model_is_passed_over(origin: ScriptedServer, tmp_path: Path):
    ref = origin.url("/m/weights.bin")
    snapshot = pull(tmp_path / "store", ref, f"{origin.url('/m/')} => file://{tmp_path}/none/")
    assert tree(snapshot.path) == {"weights.bin": DATA}
    assert snapshot.report is not None
    (event,) = [line for line in snapshot.report.events if "mirror" in line]
    assert "none/weights.bin passed over" in event


def test_a_mirror_that_fails_midway_is_passed_over(origin: ScriptedServer, tmp_path: Path):
    def dies(asked: Asked) -> Reply:
        good = StaticFile(DATA, {"ETag": '"mirrored"'})(asked)
        return good if asked.method == "HEAD" else Reply(403)

    with ScriptedServer() as mirror:
        mirror.answers["/copy/weights.bin"] = dies
        ref = origin.url("/m/weights.bin")
        rewrite = f"{origin.url('/m/')} => {mirror.url('/copy/')}"
        snapshot = pull(tmp_path / "store", ref, rewrite)
        assert mirror.asked
    assert tree(snapshot.path) == {"weights.bin": DATA}


def test_where_only_mirrors_are_allowed_the_origin_is_never_asked(
    origin: ScriptedServer, tmp_path: Path
):
    ref = origin.url("/m/weights.bin")
    rewrites = [f"{origin.url('/m/')} => file://{tmp_path}/{name}/" for name in ("a", "b")]
    with pytest.raises(NotFound, match=r"b/weights\.bin.*a/weights\.bin passed over"):
        pull(tmp_path / "store", ref, *rewrites, only=True)
    assert not origin.asked


def test_what_came_from_a_mirror_is_mended_from_it(origin: ScriptedServer, tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "weights.bin").write_bytes(DATA)
    ref = origin.url("/m/weights.bin")
    pull(tmp_path / "store", ref, f"{origin.url('/m/')} => file://{mirror}/")
    with Engine(settings(tmp_path / "store")) as engine:
        (model_id,) = engine.store.model_ids()
        (file,) = engine.store.manifest(model_id).files
        blob = engine.store.layout.blob(file.blob)
        blob.chmod(0o644)
        with blob.open("r+b") as damaged:
            damaged.write(b"?")
        (result,) = engine.verify()
        assert result.repaired
        assert (engine.path(model_id) / "weights.bin").read_bytes() == DATA
    assert not origin.asked
