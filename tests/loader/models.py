"""Small models whose every byte differs from its neighbours."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, "np.ndarray[Any, Any]"]


def arrays(seed: int, *, rows: int = 24, columns: int = 3000) -> Arrays:
    """Tensors of several types and shapes, one empty, one a scalar; neighbours are unaligned."""
    rng = np.random.default_rng(seed)
    floats = rng.standard_normal((rows, columns)).astype(np.float32)
    return {
        f"l{seed}.weight": floats,
        f"l{seed}.half": floats.astype(np.float16)[:, :7].copy(),
        f"l{seed}.bytes": rng.integers(0, 255, 13, np.uint8),
        f"l{seed}.cube": rng.integers(-(2**40), 2**40, (4, 6, 8), np.int64),
        f"l{seed}.empty": np.zeros((0, 5), np.float32),
        f"l{seed}.scalar": np.array(seed, np.int32),
        f"l{seed}.mask": rng.integers(0, 2, 9).astype(np.bool_),
    }


def write_shards(folder: Path, parts: Sequence[Arrays]) -> Arrays:
    """A sharded model with its index, as written by others; returns all of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    everything: Arrays = {}
    for number, part in enumerate(parts):
        name = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
        everything |= part
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return everything


def write_raw(path: Path, header: bytes | Mapping[str, Any], data: bytes = b"") -> Path:
    """A safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, Any]:
    """One line of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def assert_same(found: Mapping[str, Any], wanted: Arrays) -> None:
    """Names, types, shapes and bytes."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name
