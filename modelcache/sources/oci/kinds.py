"""What kind of file belongs to which kind of ModelPack layer, by its name.

The specification leaves the choice to whoever packs. What no rule knows is a guess by size, and
marked so with the specification's own annotation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """The kinds of layers, as media types spell them."""

    WEIGHT = "weight"
    CONFIG = "weight.config"
    DOC = "doc"
    CODE = "code"


GUESSED_WEIGHT_BYTES: Final = 16 << 20  # what is larger and has no known name is hardly settings

_ENDINGS: Final = {
    Kind.WEIGHT: (
        "safetensors bin pt pth ckpt gguf ggml onnx onnx_data h5 hdf5 keras msgpack tflite pb npz "
        "npy mlmodel engine plan pte nemo distcp params pdparams pdiparams"
    ),
    Kind.CONFIG: (
        "json jsonl yaml yml toml ini cfg conf model tiktoken spm vocab bpe merges jinja jinja2 "
        "index proto pbtxt config"
    ),
    Kind.DOC: "md markdown rst pdf html htm png jpg jpeg gif svg webp bib csv tsv",
    Kind.CODE: "py pyi ipynb sh bash c cc cpp cxx cu cuh h hpp js ts go rs java lua patch",
}
_BY_ENDING: Final = {ending: kind for kind, text in _ENDINGS.items() for ending in text.split()}
_BY_NAME: Final = {
    "vocab.txt": Kind.CONFIG,
    "merges.txt": Kind.CONFIG,
    "requirements.txt": Kind.CODE,
    "dockerfile": Kind.CODE,
    "makefile": Kind.CODE,
}
_DOCUMENTS: Final = ("readme", "license", "licence", "notice", "copying", "changelog", "usage")

# As ModelPack's `config.format`; the first that a weight's name ends in.
_FORMATS: Final = {
    "safetensors": "safetensors",
    "gguf": "gguf",
    "ggml": "ggml",
    "onnx": "onnx",
    "bin": "pytorch",
    "pt": "pytorch",
    "pth": "pytorch",
    "h5": "keras",
    "keras": "keras",
    "tflite": "tflite",
    "pb": "tensorflow",
    "ckpt": "pytorch",
    "nemo": "nemo",
    "engine": "tensorrt",
    "plan": "tensorrt",
    "msgpack": "flax",
}


def kind_of(path: str, size_bytes: int) -> tuple[Kind, bool]:
    """The kind of a file, and whether its name told."""
    name = path.rpartition("/")[2].lower()
    if name in _BY_NAME:
        return _BY_NAME[name], True
    if name.startswith(_DOCUMENTS):
        return Kind.DOC, True
    kind = _BY_ENDING.get(_ending(name))
    if kind is not None:
        return kind, True
    if name.endswith(".txt"):
        return Kind.DOC, True
    return (Kind.WEIGHT if size_bytes >= GUESSED_WEIGHT_BYTES else Kind.CONFIG), False


def format_of(path: str) -> str | None:
    """What the weights in a file are written in, as far as its name tells."""
    return _FORMATS.get(_ending(path.rpartition("/")[2].lower()))


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
