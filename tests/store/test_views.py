"""Views: links into snapshots for other programs; built at once or not at all, gone with models."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.domain.manifests import ModelId
from modelcache.domain.refs import parse_ref
from modelcache.errors import UnsafePath
from modelcache.store import Store, views
from modelcache.store.views import Shown
from tests.agent.support import settings
from tests.store.processes import exit_code, fork
from tests.store.striking import struck

KILLED = 9


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(settings(tmp_path / "store"))


@pytest.fixture
def store(engine: Engine) -> Store:
    return engine.store


@pytest.fixture
def model(tmp_path: Path, engine: Engine) -> ModelId:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_bytes(b"{}")
    (root / "sub/weights.bin").write_bytes(b"weights")
    return engine.pull(parse_ref(f"file://{root}")).model_id


def links(model: ModelId) -> dict[str, Shown]:
    return {
        "models--a--b/snapshots/c/config.json": Shown(model, "config.json"),
        "models--a--b/snapshots/c/x/weights.bin": Shown(model, "sub/weights.bin"),
    }


TEXTS = {"models--a--b/refs/main": "c"}


def test_a_view_shows_the_snapshots_files_and_its_texts(store, model):
    view = views.show(store, links(model), TEXTS)
    assert (view / "models--a--b/snapshots/c/config.json").read_bytes() == b"{}"
    assert (view / "models--a--b/snapshots/c/x/weights.bin").read_bytes() == b"weights"
    assert (view / "models--a--b/refs/main").read_text() == "c"


def test_others_may_read_a_view_whatever_the_umask(store, model):
    before = os.umask(0o077)
    try:
        view = views.show(store, links(model), TEXTS)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (view, *view.rglob("*/"))}
    assert modes == {0o755}
    assert stat.S_IMODE((view / "models--a--b/refs/main").stat().st_mode) == 0o644


def test_a_view_goes_along_when_the_store_is_moved(store, model, tmp_path):
    view = views.show(store, links(model), TEXTS)
    moved = store.layout.root.rename(tmp_path / "moved")
    found = moved / view.relative_to(store.layout.root)
    assert (found / "models--a--b/snapshots/c/x/weights.bin").read_bytes() == b"weights"


def test_the_same_view_is_built_once_and_another_beside_it(store, model):
    view = views.show(store, links(model), TEXTS)
    inode = view.stat().st_ino
    assert views.show(store, links(model), TEXTS) == view
    assert view.stat().st_ino == inode
    assert views.show(store, links(model), {"models--a--b/refs/main": "d"}) != view
    assert view.is_dir()


def test_a_view_that_somebody_damaged_is_built_anew(store, model):
    view = views.show(store, links(model), TEXTS)
    (view / "models--a--b/snapshots/c/config.json").unlink()
    (view / "models--a--b/refs/main").write_text("z")
    assert views.show(store, links(model), TEXTS) == view
    assert (view / "models--a--b/snapshots/c/config.json").read_bytes() == b"{}"
    assert (view / "models--a--b/refs/main").read_text() == "c"


def test_many_may_ask_for_one_view_at_once(store, model):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: views.show(store, links(model), TEXTS), range(32)))
    assert len(found) == 1
    assert len(list((store.layout.root / "views").iterdir())) == 1


@pytest.mark.parametrize("path", ["../evil", "/abs", "a/../../b", "refs/.."])
def test_a_path_that_leaves_the_view_is_refused(store, model, path):
    with pytest.raises(UnsafePath):
        views.show(store, {path: Shown(model, "config.json")}, {})
    with pytest.raises(UnsafePath):
        views.show(store, {"a": Shown(model, "../../etc/passwd")}, {})
    with pytest.raises(UnsafePath):
        views.show(store, {}, {path: "text"})


def test_garbage_collection_keeps_a_view_for_as_long_as_its_model(engine, store, model):
    view = views.show(store, links(model), TEXTS)
    engine.collect_garbage()
    assert view.is_dir()
    engine.remove(model)
    engine.collect_garbage()
    assert not view.exists()
    assert engine.models() == []


def test_a_store_without_views_is_collected_as_ever(engine, model):
    engine.collect_garbage()
    assert [found.model_id for found in engine.models()] == [model]


def test_what_somebody_else_keeps_among_the_views_is_left_alone(engine, store, model):
    views.show(store, links(model), TEXTS)
    strange = store.layout.root / "views" / "models--org--name"
    strange.mkdir()
    (strange / "dangling").symlink_to("nowhere")
    engine.collect_garbage()
    assert (strange / "dangling").is_symlink()


def test_killed_anywhere_a_view_is_whole_or_absent(engine, store, model):
    step = 0
    while True:
        step += 1

        def build(step: int = step) -> None:
            with struck(step, lambda: os.kill(os.getpid(), KILLED)):
                views.show(store, links(model), TEXTS)

        done = exit_code(fork(build))
        folder = store.layout.root / "views"
        shown = [path for path in folder.glob("*") if not path.name.startswith(".")]
        for view in shown:
            assert (view / "models--a--b/snapshots/c/x/weights.bin").read_bytes() == b"weights"
            assert (view / "models--a--b/refs/main").read_text() == "c"
        if done == 0:
            break
        for view in shown:
            store.trash(view)
        engine.collect_garbage()
        assert not list(folder.glob(".*"))
    assert step > 5
