from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import modelcache
from modelcache.errors import NoDevice

jax: Any = pytest.importorskip("jax", reason="JAX is not installed; see docs/loading.md")


def test_arrays_come_by_dlpack_whatever_their_type(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {
        "f": values,
        "i": np.arange(5, dtype=np.int8),
        "b": values.astype(ml_dtypes.bfloat16),
        "e": np.zeros((0, 3), np.float32),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found = modelcache.load(tmp_path, framework="jax")
    for name, array in tensors.items():
        assert isinstance(found[name], jax.Array)
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[name]), array)


@pytest.mark.parametrize("device", ["cpu:99", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there_says_so(tmp_path: Path, device: str) -> None:
    with pytest.raises(NoDevice, match=device):
        modelcache.load(tmp_path, framework="jax", device=device)
