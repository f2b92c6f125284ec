from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import modelcache
from modelcache.errors import NoDevice, UnsupportedDtype
from tests.loader.models import arrays, write_shards

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed; see docs/loading.md")


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return tmp_path / "m", write_shards(tmp_path / "m", [arrays(1), arrays(2)])


def test_tensors_are_those_of_safetensors(model: Any) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    folder, wanted = model
    found = modelcache.load(folder, framework="torch")
    assert found.keys() == wanted.keys()
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_load_file_stands_in_for_that_of_safetensors(model: Any) -> None:
    import modelcache.torch  # noqa: PLC0415

    folder, wanted = model
    path = folder / "model-00001-of-00002.safetensors"
    for name, tensor in modelcache.torch.load_file(path).items():
        np.testing.assert_array_equal(tensor.numpy(), wanted[name])
        tensor.zero_()  # it is the caller's own memory


def test_floats_become_bfloat16_and_others_stay(model: Any) -> None:
    folder, _ = model
    found = modelcache.load(folder, framework="torch", dtype=torch.bfloat16)
    assert found["l1.weight"].dtype == torch.bfloat16
    assert found["l1.cube"].dtype == torch.int64


def test_types_of_few_bits_arrive(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save  # noqa: PLC0415

    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.arange(6).to(torch.float8_e4m3fn),
        "c": torch.arange(5).to(torch.bfloat16),
    }
    save(tensors, tmp_path / "m.safetensors")
    found = modelcache.load(tmp_path, framework="torch")
    for name, tensor in tensors.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "nonsense", "xpu"])
def test_a_device_that_is_not_there_says_so(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    save_file({"w": np.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(NoDevice, match=device):
        modelcache.load(tmp_path, framework="torch", device=device)


@pytest.mark.parametrize("dtype", ["int8", "float31", "Tensor"])
def test_a_dtype_that_floats_cannot_become_says_so(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedDtype):
        modelcache.load(tmp_path, framework="torch", dtype=dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_gpu_gets_what_the_file_has(model: Any) -> None:
    folder, wanted = model
    for name, tensor in modelcache.load(folder, framework="torch", device="cuda").items():
        assert tensor.device.type == "cuda"
        np.testing.assert_array_equal(tensor.cpu().numpy(), wanted[name])


def test_memory_that_is_pinned_is_laid_out_as_any_other(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the way to a GPU but the pinning, for machines that have none."""
    from modelcache.loader import frameworks  # noqa: PLC0415

    empty = torch.empty
    folder, wanted = model

    def unpinned(*size: Any, **more: Any) -> Any:
        more.pop("pin_memory", None)
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", unpinned)
    made = frameworks.Torch.__init__

    def pinned(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self._pinned = True

    monkeypatch.setattr(frameworks.Torch, "__init__", pinned)
    for name, tensor in modelcache.load(folder, framework="torch").items():
        np.testing.assert_array_equal(tensor.numpy(), wanted[name])
