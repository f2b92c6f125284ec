"""`import modelcache`: what a program sees."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import modelcache
from modelcache import errors
from modelcache.agent import fetching
from modelcache.domain.refs import parse_ref
from modelcache.transfer.policy import DIRECT_BYTES_MIN
from modelcache.transfer.report import Phase, Progress
from tests.agent.support import tree
from tests.main.conftest import FILES, MIB
from tests.servers.faults import Fault, FaultProxy, held_from
from tests.servers.process import free_port

TOTAL = sum(map(len, FILES.values()))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_STORE_CHUNK_BYTES", "2MiB")


def test_a_pull_gives_a_snapshot(model: Path, tmp_path: Path):
    snapshot = modelcache.pull(f"file://{model}", store=str(tmp_path / "store"))
    assert isinstance(snapshot, modelcache.Snapshot)
    assert tree(snapshot.path) == FILES
    assert snapshot.path == tmp_path / "store" / "snapshots" / snapshot.model_id
    assert (snapshot.fetched_bytes, snapshot.from_cache) == (TOTAL, False)
    again = modelcache.pull(f"file://{model}", store=tmp_path / "store", max_age_s=60.0)
    assert (again.path, again.fetched_bytes, again.from_cache) == (snapshot.path, 0, True)
    asked = modelcache.pull(f"file://{model}", store=tmp_path / "store", max_age_s=60, refresh=True)
    assert (asked.path, asked.fetched_bytes, asked.from_cache) == (snapshot.path, 0, False)


def test_filters_are_given_as_globs(model: Path, tmp_path: Path):
    snapshot = modelcache.pull(
        f"file://{model}", store=tmp_path, include=["*.safetensors", "*.json"], exclude=["b.*"]
    )
    assert set(tree(snapshot.path)) == {"a.safetensors", "config.json"}


@pytest.mark.slow
def test_progress_only_grows_and_ends_with_everything(origin: FaultProxy, tmp_path: Path):
    origin.plan = lambda request: Fault(bytes_s=4e6) if request.span else None
    seen: list[Progress] = []
    threads = set()

    def follow(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.get_ident())

    modelcache.pull(f"{origin.url}/", store=tmp_path / "store", progress=follow)
    counts = [progress.done_bytes for progress in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert seen[0].phase is Phase.RESOLVING
    assert (seen[-1].phase, seen[-1].done_bytes, seen[-1].files_done) == (Phase.DONE, TOTAL, 4)
    assert threads == {threading.get_ident()}


def test_a_pull_that_had_nothing_to_do_ends_its_progress_too(model: Path, tmp_path: Path):
    modelcache.pull(f"file://{model}", store=tmp_path)
    seen: list[Progress] = []
    modelcache.pull(f"file://{model}", store=tmp_path, progress=seen.append)
    assert (seen[-1].phase, seen[-1].done_bytes, seen[-1].total_bytes) == (Phase.DONE, TOTAL, TOTAL)


def test_a_callback_that_raises_ends_the_pull_with_its_error(origin: FaultProxy, tmp_path: Path):
    def refuse(progress: Progress) -> None:
        if progress.phase is Phase.TRANSFERRING:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        modelcache.pull(f"{origin.url}/", store=tmp_path / "store", progress=refuse)
    assert tree(modelcache.pull(f"{origin.url}/", store=tmp_path / "store").path) == FILES


def test_a_cancelled_pull_goes_on_from_there(origin: FaultProxy, tmp_path: Path):
    origin.plan = held_from(4 * MIB)
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.done_bytes >= 8 * MIB:
            cancel.set()

    url, store = f"{origin.url}/", tmp_path / "store"
    with pytest.raises(errors.Cancelled):
        modelcache.pull(url, store=store, progress=stop, cancel=cancel)
    origin.plan = lambda _: None
    snapshot = modelcache.pull(url, store=store)
    assert tree(snapshot.path) == FILES
    assert 0 < snapshot.fetched_bytes <= TOTAL - 2 * MIB


def test_a_pull_that_was_cancelled_before_it_began_asks_for_nothing(
    origin: FaultProxy, tmp_path: Path
):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(errors.Cancelled):
        modelcache.pull(f"{origin.url}/", store=tmp_path / "store", cancel=cancel)
    assert not origin.gets(".safetensors")


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("nonsense", errors.InvalidRef),
        ("s3://", errors.UsageError),
        ("file:///not/there", errors.NotFound),
    ],
)
def test_errors_say_by_their_class_what_to_do(tmp_path: Path, ref: str, error):
    with pytest.raises(error) as caught:
        modelcache.pull(ref, store=tmp_path)
    assert isinstance(caught.value, errors.ModelcacheError)


def test_an_origin_that_is_down_is_worth_another_try(tmp_path: Path):
    with pytest.raises(errors.SourceUnavailable):
        modelcache.pull(f"http://127.0.0.1:{free_port()}/m", store=tmp_path)


def test_an_engine_answers_many_questions_over_one_store(model: Path, tmp_path: Path):
    settings = modelcache.load_settings().with_store(tmp_path / "store")
    snapshot = modelcache.pull(f"file://{model}", settings=settings)
    with modelcache.Engine(settings) as engine:
        (stored,) = engine.models()
        assert stored.warm
        assert engine.path(snapshot.model_id[:8]) == snapshot.path
        assert engine.explain(f"file://{model}").fetched_bytes == TOTAL
        assert engine.pin(snapshot.model_id) == snapshot.model_id
        with pytest.raises(errors.Leased):
            engine.remove(snapshot.model_id)
        assert engine.unpin(snapshot.model_id)
        assert engine.remove(snapshot.model_id) == TOTAL
        with pytest.raises(errors.NotInStore):
            engine.path(snapshot.model_id)


def test_an_engine_that_was_opened_for_reading_does_not_pull(model: Path, tmp_path: Path):
    settings = modelcache.load_settings().with_store(tmp_path / "store")
    with modelcache.Engine(settings, write=False) as engine:
        assert engine.models() == []
        with pytest.raises(errors.StoreReadOnly):
            engine.pull(parse_ref(f"file://{model}"))
    assert not (tmp_path / "store").exists()


def test_names_that_are_not_there_are_attribute_errors():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = modelcache.nonsense
    assert all(hasattr(modelcache, name) for name in modelcache.__all__)


@pytest.mark.parametrize(("cheap_bytes", "written"), [(0, "direct"), (1 << 36, "buffered")])
def test_a_pull_stays_in_memory_where_that_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_bytes: int, written: str
):
    monkeypatch.setattr(fetching, "cheap_memory_bytes", lambda: cheap_bytes)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(DIRECT_BYTES_MIN))
    snapshot = modelcache.pull(f"file://{tmp_path}/model", store=tmp_path / "store")
    assert snapshot.report is not None
    assert snapshot.report.io == written
    assert tree(snapshot.path) == {"weights": bytes(DIRECT_BYTES_MIN)}
