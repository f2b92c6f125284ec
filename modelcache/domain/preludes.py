"""What programs read of a model before its weights: descriptions, tokenizers, headers.

A loader reads the configuration and the index, then the header of each shard, and only then knows
which tensors it wants. Whoever streams a model has these before all else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelcache.domain.manifests import File
from modelcache.domain.ranges import MIB, ByteRange

SMALL_BYTES: Final = 32 * MIB  # the largest tokenizers; weights are larger, or soon here
HEADERS_MAX: Final = 512  # shards: with a chunk each, 8 GiB of what is needed anyway
_WHOLE: Final = frozenset(
    {"json", "txt", "model", "jinja", "py", "yaml", "yml", "tiktoken", "vocab"}
)
_AT_START: Final = frozenset({"safetensors", "gguf", "onnx"})
_AT_END: Final = frozenset({"bin", "pt", "pth", "ckpt"})  # PyTorch's are zips: listed at the end


def prelude(files: Iterable[File]) -> list[tuple[File, ByteRange]]:
    """Ranges in the order in which they should come: whole small files, then headers."""
    whole: list[tuple[File, ByteRange]] = []
    headers: list[tuple[File, ByteRange]] = []
    for file in files:
        suffix = file.path.rpartition(".")[2].lower()
        if not file.size_bytes:
            continue
        if suffix in _WHOLE and file.size_bytes <= SMALL_BYTES:
            whole.append((file, ByteRange(0, file.size_bytes)))
        elif suffix in _AT_START:
            headers.append((file, ByteRange(0, 1)))
        elif suffix in _AT_END:
            headers.append((file, ByteRange(file.size_bytes - 1, file.size_bytes)))
    whole.sort(key=lambda each: each[0].size_bytes)
    return whole + headers[:HEADERS_MAX]
