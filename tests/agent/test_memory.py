"""Models in memory: the page cache, and copies on a real tmpfs."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import modelcache
from modelcache.agent import Engine, memorizing, memory
from modelcache.domain.refs import parse_ref
from modelcache.errors import Cancelled, InvalidConfig, MemoryFull, NotInStore
from modelcache.store.copies import TMPFS, Copies, filesystem_type
from tests.agent.support import random_bytes, settings, tree
from tests.loader.models import arrays, assert_same, write_shards

SHM = Path("/dev/shm")  # noqa: S108 - the tmpfs that every Linux has
FILES = {
    "a.safetensors": random_bytes(9 << 20, 1),
    "b.safetensors": random_bytes((3 << 20) + 77, 2),
    "sub/config.json": b"{}",
}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def shm() -> Iterator[Path]:
    if not SHM.is_dir() or filesystem_type(SHM) != TMPFS:
        pytest.skip(f"{SHM} is no tmpfs here")
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix="modelcache-test-"))
    yield folder
    shutil.rmtree(folder)


def model(folder: Path, seed: int = 0) -> str:
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + bytes([seed]))
    return f"file://{folder}"


def engine_at(tmp_path: Path, **chosen: object) -> Engine:
    base = settings(tmp_path / "store")
    return Engine(replace(base, memory=replace(base.memory, **chosen)))


@pytest.fixture
def engine(tmp_path: Path, shm: Path) -> Engine:
    return engine_at(tmp_path, folder=str(shm))


def pulled(engine: Engine, folder: Path, seed: int = 0) -> str:
    return engine.pull(parse_ref(model(folder, seed))).model_id


def test_a_warm_model_comes_into_the_page_cache_and_goes_again(
    engine: Engine, tmp_path: Path
) -> None:
    what = pulled(engine, tmp_path / "m")
    os.sync()
    engine.memory.drop(what)
    cold = engine.memory.use(engine.store.manifest(what)).resident_bytes
    if cold is None or cold > TOTAL // 2:
        pytest.skip("this filesystem's files do not leave the page cache")
    told: list[tuple[int, int]] = []
    used = engine.warm_memory(what, told=lambda done, total: told.append((done, total)))
    assert used.resident_bytes == TOTAL + 3
    assert used.copy_path is None
    assert told[-1] == (TOTAL + 3, TOTAL + 3)
    assert engine.models()[0].memory == used
    assert engine.memory.drop(what) > TOTAL // 2
    assert engine.models()[0].warm, "the disk keeps it"


def test_how_fast_a_model_came_from_the_disk_is_told_and_not_what_was_there(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorizing, "MEASURED_BYTES_MIN", 1 << 20)
    what = pulled(engine, tmp_path / "m")
    os.sync()
    engine.memory.drop(what)
    cold = engine.memory.use(engine.store.manifest(what)).resident_bytes
    if cold is None or cold > TOTAL // 2:
        pytest.skip("this filesystem's files do not leave the page cache")
    told: list[tuple[int, float]] = []
    bringing = memorizing.Memorizing(engine, lambda size, seconds: told.append((size, seconds)))
    for _ in range(2):  # the second finds all of it
        bringing.begin(what, locked=False)
        for thread in bringing._threads:
            thread.join()
    ((size, seconds),) = told
    assert size == TOTAL + 3 - cold
    assert seconds > 0


def test_what_is_resident_is_not_read_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = pulled(engine, tmp_path / "m")
    engine.warm_memory(what)

    def never(*_: object, **__: object) -> int:
        raise AssertionError("read again")

    monkeypatch.setattr(memory, "_read", never)
    engine.warm_memory(what)


def test_more_than_its_share_of_memory_is_refused(tmp_path: Path) -> None:
    engine = engine_at(tmp_path, share=1e-9)
    what = pulled(engine, tmp_path / "m")
    os.sync()
    engine.memory.drop(what)
    with pytest.raises(MemoryFull, match=r"memory\.share"):
        engine.warm_memory(what)


def test_stopping_ends_it(engine: Engine, tmp_path: Path) -> None:
    what = pulled(engine, tmp_path / "m")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        engine.warm_memory(what, cancel=cancel)
    with pytest.raises(Cancelled):
        engine.warm_memory(what, locked=True, cancel=cancel)
    assert engine.memory.use(engine.store.manifest(what)).copy_path is None


def test_a_model_that_is_not_warm_is_refused(engine: Engine) -> None:
    with pytest.raises(NotInStore):
        engine.warm_memory("0123abcd")


def test_a_locked_copy_is_the_model_and_readers_are_led_to_it(
    engine: Engine, tmp_path: Path
) -> None:
    what = pulled(engine, tmp_path / "m")
    used = engine.warm_memory(what, locked=True)
    assert used.copy_path is not None
    assert tree(used.copy_path) == {name: data + b"\0" for name, data in FILES.items()}
    assert used.copy_bytes == TOTAL + 3
    assert filesystem_type(used.copy_path) == TMPFS
    assert engine.warm_memory(what, locked=True) == used, "once is enough"
    assert engine.memory.copy_path(what) == used.copy_path


def test_the_loader_reads_the_copy(engine: Engine, tmp_path: Path) -> None:
    wanted = write_shards(tmp_path / "tensors", [arrays(1), arrays(2)])
    what = engine.pull(parse_ref(f"file://{tmp_path}/tensors")).model_id
    copied = engine.warm_memory(what, locked=True).copy_path
    assert copied is not None
    assert_same(modelcache.load(what, settings=engine.settings), wanted)
    first = next(copied.glob("*1-of*"))
    first.chmod(0o644)
    with first.open("r+b") as file:  # nobody else's bytes are these
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    changed = modelcache.load(what, settings=engine.settings)
    assert any(changed[name].tobytes() != wanted[name].tobytes() for name in wanted)


def test_copying_leaves_the_page_cache_alone(engine: Engine, tmp_path: Path) -> None:
    what = pulled(engine, tmp_path / "m")
    os.sync()
    engine.memory.drop(what)
    manifest = engine.store.manifest(what)
    if engine.memory.use(manifest).resident_bytes:
        pytest.skip("this filesystem's files do not leave the page cache")
    engine.warm_memory(what, locked=True)
    resident = engine.memory.use(manifest).resident_bytes
    assert resident is not None
    assert resident < TOTAL // 4


def test_the_quota_drops_what_was_used_longest_ago(tmp_path: Path, shm: Path) -> None:
    tight = engine_at(tmp_path, folder=str(shm), quota_bytes=2 * TOTAL + 100)
    ids = [pulled(tight, tmp_path / f"m{seed}", seed) for seed in range(3)]
    for what in ids[:2]:
        tight.warm_memory(what, locked=True)
    os.utime(tight.memory.copy_path(ids[1]), (1, 1))
    tight.warm_memory(ids[2], locked=True)
    assert [tight.memory.copy_path(what) is not None for what in ids] == [True, False, True]
    assert all(stored.warm for stored in tight.models())


def test_copies_of_models_that_the_store_lost_go_first(tmp_path: Path, shm: Path) -> None:
    tight = engine_at(tmp_path, folder=str(shm), quota_bytes=2 * TOTAL + 100)
    ids = [pulled(tight, tmp_path / f"m{seed}", seed) for seed in range(3)]
    for what in ids[:2]:
        tight.warm_memory(what, locked=True)
    os.utime(tight.memory.copy_path(ids[0]), (1, 1))
    tight.store.remove_model(ids[1])
    tight.warm_memory(ids[2], locked=True)
    assert [tight.memory.copy_path(what) is not None for what in ids] == [True, False, True]


def test_removing_a_model_removes_its_copy(engine: Engine, tmp_path: Path) -> None:
    what = pulled(engine, tmp_path / "m")
    path = engine.warm_memory(what, locked=True).copy_path
    engine.remove(what)
    assert path is not None
    assert not path.exists()


def test_a_model_larger_than_the_quota_is_refused_and_nothing_is_left(
    tmp_path: Path, shm: Path
) -> None:
    small = engine_at(tmp_path, folder=str(shm), quota_bytes=TOTAL // 2)
    what = pulled(small, tmp_path / "m")
    with pytest.raises(MemoryFull, match=r"memory\.quota_bytes"):
        small.warm_memory(what, locked=True)
    assert [path.name for path in shm.rglob("*") if path.is_file()] == ["lock"]


def test_what_a_killed_copier_left_is_removed_by_the_next(
    engine: Engine, tmp_path: Path, shm: Path
) -> None:
    what = pulled(engine, tmp_path / "m")
    copies = Copies(shm, engine.store.layout.root, 0)
    engine.warm_memory(what, locked=True)
    left = engine.memory.copy_path(what).parent / ".new-0badf00d"
    left.mkdir()
    (left / "x").write_bytes(b"x")
    assert [copy.model_id for copy in copies.all()] == [what], "it counts for nothing"
    copies.drop(what)
    assert not left.exists()


def test_a_folder_on_a_disk_is_refused(tmp_path: Path) -> None:
    if filesystem_type(tmp_path) == TMPFS:
        pytest.skip("the tests' folder is in memory")
    engine = engine_at(tmp_path, folder=str(tmp_path / "disk"))
    what = pulled(engine, tmp_path / "m")
    with pytest.raises(InvalidConfig, match="not in memory"):
        engine.warm_memory(what, locked=True)


def test_without_a_folder_nothing_can_be_locked(tmp_path: Path) -> None:
    engine = engine_at(tmp_path)
    what = pulled(engine, tmp_path / "m")
    with pytest.raises(InvalidConfig, match=r"memory\.folder"):
        engine.warm_memory(what, locked=True)
