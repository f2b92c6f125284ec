"""Real-shaped models: sharded safetensors with their index, tokenizer and configuration.

Content is deterministic for a seed and made at about the speed of a disk, so tests can compare and
benchmarks need no download. safetensors format: 8 bytes little-endian header length, a JSON header
(name -> dtype, shape, data_offsets), then the tensors.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

_PIECE_BYTES = 4 << 20
_HIDDEN = 1024


def write_model(directory: Path, size_bytes: int, shards: int = 4, seed: int = 0) -> None:
    """Write a model of about `size_bytes` in `shards` safetensors files."""
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        size, tensors = _write_shard(directory / name, size_bytes // shards, shard, seed)
        total += size
        weight_map.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _json(directory / "model.safetensors.index.json", index)
    _json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": _HIDDEN,
            "model_type": "llama",
            "torch_dtype": "bfloat16",
        },
    )
    _json(directory / "generation_config.json", {"do_sample": True, "temperature": 0.6})
    _json(directory / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    _json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    vocabulary = {f"token{number}": number for number in range(32_000)}
    _json(directory / "tokenizer.json", {"model": {"type": "BPE", "vocab": vocabulary}})
    (directory / "README.md").write_text("# A model made for measuring\n")


def write_small_files(directory: Path, count: int, size_bytes: int, seed: int = 0) -> None:
    """Write `count` files of `size_bytes` in folders of a thousand."""
    block = np.random.Generator(np.random.PCG64(seed)).bytes(size_bytes)
    for number in range(count):
        folder = directory / f"part-{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        tag = f"{seed}/{number}/".encode()
        (folder / f"file-{number:06d}.bin").write_bytes((tag + block)[:size_bytes])


def _write_shard(path: Path, size_bytes: int, shard: int, seed: int) -> tuple[int, list[str]]:
    rows = max(1, size_bytes // (2 * _HIDDEN) // 8)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    names = []
    for number in range(8):
        name = f"model.layers.{shard}.part{number}.weight"
        end = offset + rows * _HIDDEN * 2
        header[name] = {
            "dtype": "BF16" if number else "F16",
            "shape": [rows, _HIDDEN],
            "data_offsets": [offset, end],
        }
        names.append(name)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.Generator(np.random.PCG64([seed, shard]))
    # float16 values of every bit pattern would include NaN; small integers compare cleanly.
    piece = random.integers(0, 255, _PIECE_BYTES // 2, dtype=np.uint16)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = offset
        count = 0
        while left:
            piece[:8] = count % 65_000
            data = piece.tobytes()[: min(left, _PIECE_BYTES)]
            file.write(data)
            left -= len(data)
            count += 1
    return offset, names


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
