from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import modelcache
from modelcache.errors import BadTensors, NoDevice, NotFound, UnsupportedDtype, UsageError
from modelcache.loader.local import LocalFile
from modelcache.loader.plan import Piece
from modelcache.store.residency import resident_file_bytes
from tests.loader.models import arrays, assert_same, entry, write_raw, write_shards


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path / "model"
    parts = [arrays(1), arrays(2, rows=1200, columns=6000), arrays(3)]
    return folder, write_shards(folder, parts)


def make_cold(folder: Path) -> None:
    """Put the files out of the page cache, as after a start of the machine."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_every_byte_of_a_sharded_model_arrives(model: Any, cold: bool, direct: bool) -> None:
    folder, wanted = model
    if cold:
        make_cold(folder)
    assert_same(modelcache.load(folder, direct=direct), wanted)


@pytest.mark.parametrize("order", ["file", "arrival"])
@pytest.mark.parametrize("window_bytes", [0, 1 << 20, 1 << 30])
def test_tensors_come_one_by_one_within_any_window(
    model: Any, order: str, window_bytes: int
) -> None:
    folder, wanted = model
    found = dict(modelcache.iter_tensors(folder, order=order, window_bytes=window_bytes))
    assert_same(found, wanted)


def test_the_order_of_the_file_is_the_order_of_its_bytes(model: Any) -> None:
    folder, _ = model
    names = [name for name, _ in modelcache.iter_tensors(folder, order="file")]
    full = [name for name in names if not name.endswith("empty")]
    assert full[0].startswith("l1.")
    assert full[-1].startswith("l3.")
    assert names[:3] == ["l1.empty", "l2.empty", "l3.empty"]


def test_a_cold_file_is_read_past_the_page_cache(tmp_path: Path) -> None:
    save_file({"w": np.arange(6 << 20, dtype=np.uint32)}, tmp_path / "m.safetensors")
    make_cold(tmp_path)
    path = tmp_path / "m.safetensors"
    before = resident_file_bytes(path)
    if before is None or before > 0:
        pytest.skip("this filesystem's files do not leave the page cache")
    found = modelcache.load(path)["w"]
    assert found[-1] == (6 << 20) - 1
    after = resident_file_bytes(path)
    assert after is not None
    assert after < 1 << 20, "only its header"


def test_a_file_that_is_resident_is_not_read_from_the_disk(model: Any) -> None:
    folder, _ = model
    path = folder / "model-00002-of-00003.safetensors"
    path.read_bytes()
    file = LocalFile(path)
    try:
        piece = Piece(0, 1 << 20, 1 << 20, 1, 0)
        file.read(piece, memoryview(bytearray(1 << 20)))
        assert file.direct_bytes == 0
    finally:
        file.close()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1200, 6000), (36, 240_000)])
def test_each_rank_gets_its_part(
    tmp_path: Path, axis: int, cold: bool, rows: int, columns: int
) -> None:
    whole = np.random.default_rng(1).integers(0, 99, (rows, columns), np.uint8)
    save_file({"w": whole, "n": np.ones(7)}, tmp_path / "m.safetensors")
    for rank in range(3):
        if cold:
            make_cold(tmp_path)
        found = modelcache.load(tmp_path, rank=rank, world_size=3, axes={"w": axis})
        np.testing.assert_array_equal(found["w"], np.split(whole, 3, axis)[rank])
        np.testing.assert_array_equal(found["n"], np.ones(7))


def test_a_rank_reads_only_its_bytes(tmp_path: Path) -> None:
    whole = np.zeros((64 << 10, 1 << 10), np.uint8)
    save_file({"w": whole}, tmp_path / "m.safetensors")
    make_cold(tmp_path)
    before = read_bytes()
    modelcache.load(tmp_path, rank=1, world_size=4, axes={"*": 0})
    assert 16 << 20 <= read_bytes() - before < 20 << 20


def read_bytes() -> int:
    """What this process has caused to be read from disks."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise AssertionError


def test_a_header_longer_than_what_is_read_first_is_read_whole(tmp_path: Path) -> None:
    many = {f"tensor.{n:05}": np.full(3, n, np.int32) for n in range(3000)}
    save_file(many, tmp_path / "m.safetensors")
    assert int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little") > 128 << 10
    assert_same(modelcache.load(tmp_path), many)


def test_folders_below_are_looked_at_only_for_files_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"w": np.ones(3)}, tmp_path / "unet" / "m.safetensors")
    assert modelcache.load(tmp_path, files=["unet/*"]).keys() == {"w"}
    with pytest.raises(UsageError, match="among the 0 files"):
        modelcache.load(tmp_path)


def test_only_the_named_tensors_come(model: Any) -> None:
    folder, wanted = model
    found = modelcache.load(folder, names=["l2.*", "*.scalar"])
    assert found.keys() == {n for n in wanted if n.startswith("l2.") or n.endswith("scalar")}
    with pytest.raises(UsageError, match="no tensor"):
        modelcache.load(folder, names=["nothing"])


def test_tensors_are_writable_and_go_by_dlpack(model: Any) -> None:
    folder, wanted = model
    found = modelcache.load(folder)["l1.weight"]
    given = np.from_dlpack(found)
    np.testing.assert_array_equal(given, wanted["l1.weight"])
    found[0, 0] = 42
    assert given[0, 0] == 42


def test_floats_become_what_was_asked_for_and_others_stay(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [3.25, 1e3]], np.float32)
    tensors = {
        "bf": values.astype(ml_dtypes.bfloat16),
        "half": values.astype(np.float16),
        "int": np.arange(3, dtype=np.int8),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found = modelcache.load(tmp_path, dtype="float32")
    np.testing.assert_array_equal(found["bf"], values)
    np.testing.assert_array_equal(found["half"], values)
    assert found["int"].dtype == np.int8
    assert modelcache.load(tmp_path)["bf"].dtype == ml_dtypes.bfloat16
    assert modelcache.load(tmp_path, dtype=np.float64)["half"].dtype == np.float64


@pytest.mark.parametrize(
    ("wrong", "error", "why"),
    [
        ({"framework": "mxnet"}, UsageError, "none of"),
        ({"device": "cuda"}, NoDevice, "no device"),
        ({"dtype": "int4"}, UnsupportedDtype, "none of"),
        ({"threads": 0}, UsageError, "threads"),
        ({"world_size": 2}, UsageError, "needs axes"),
        ({"rank": 1}, UsageError, "ranks count"),
        ({"names": "w"}, UsageError, "lists of globs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_opened(
    wrong: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        modelcache.load("/nowhere/at/all", **wrong)
    with pytest.raises(error, match=why):
        modelcache.iter_tensors("/nowhere/at/all", **wrong)


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="order"):
        modelcache.iter_tensors("/nowhere", order="random")


def test_a_type_that_the_library_lacks_is_named_before_anything_is_read(tmp_path: Path) -> None:
    write_raw(tmp_path / "m.safetensors", {"w": entry("F4", [4], 0, 2)}, b"ab")
    with pytest.raises(UnsupportedDtype, match="'w' is of type F4"):
        modelcache.load(tmp_path)


def test_places_without_a_model_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no safetensors file"):
        modelcache.load(tmp_path)
    with pytest.raises(NotFound, match="is not there"):
        modelcache.load(tmp_path / "nothing")
    (tmp_path / "m.safetensors").write_bytes(b"PK\x03\x04 but not a tensor in sight")
    with pytest.raises(BadTensors, match=r"m\.safetensors is no safetensors"):
        modelcache.load(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": np.ones(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(BadTensors, match=r"both in a\.safetensors and in b\.safetensors"):
        modelcache.load(tmp_path)


def test_an_index_cannot_reach_outside(tmp_path: Path) -> None:
    save_file({"w": np.ones(3)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"w": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadTensors, match="names"):
        modelcache.load(folder)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_zeros(model: Any) -> None:
    folder, _ = model
    tensors = modelcache.iter_tensors(folder, order="file", window_bytes=0, threads=1)
    next(tensors)
    os.truncate(folder / "model-00003-of-00003.safetensors", 4096)
    with pytest.raises(BadTensors, match="shorter"):
        list(tensors)


def test_leaving_early_ends_the_threads(model: Any) -> None:
    folder, _ = model
    before = threading.active_count()
    tensors = modelcache.iter_tensors(folder)
    for _ in range(4):
        next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
