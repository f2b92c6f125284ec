"""Which of a repository's files are the same weights a second time.

Repositories keep checkpoints in several formats; who loads safetensors needs none of the others.
Only what is certainly a duplicate is left out: the same checkpoint, by its name, in the same folder
in a format of another framework; and what lies in `original/`, where by the hub's custom the
publisher's own format of the same weights is (vLLM leaves that folder out, too). Quantised, ONNX
and GGUF files are other weights, and everything that is not weights is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# Names of checkpoints as the libraries write them: shards are numbered, an index lists them.
_SHARD: Final = r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?"
_KEPT: Final = re.compile(rf"(?P<stem>.+?){_SHARD}\.safetensors")
_OTHER: Final = re.compile(
    rf"(?P<stem>.+?){_SHARD}\.(?P<format>bin|pt|pth|h5|msgpack|ot|ckpt)(?:\.index\.json)?"
)
# What transformers calls the same checkpoint in the formats that came before safetensors.
_STEMS: Final = {
    ("pytorch_model", "bin"): "model",
    ("tf_model", "h5"): "model",
    ("flax_model", "msgpack"): "model",
    ("rust_model", "ot"): "model",
}
_FLAX_DIFFUSERS: Final = re.compile(r"diffusion_flax_model")
_META: Final = re.compile(r"consolidated\.\d{2}\.pth")  # the shards of Meta's own checkpoints
_ORIGINAL: Final = "original/"
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
SHOWN_MAX: Final = 3  # names in a note


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of a repository. path: relative to what the ref names."""

    path: str
    size_bytes: int


def duplicates(files: Sequence[Candidate]) -> list[Candidate]:
    """The files that hold weights which others hold as safetensors."""
    stems = _complete_stems(files)
    return [file for file in files if _is_duplicate(file.path, stems)]


def note(left_out: Iterable[Candidate]) -> str:
    """What to tell of them."""
    files = sorted(left_out, key=lambda file: -file.size_bytes)
    names = ", ".join(file.path for file in files[:SHOWN_MAX])
    more = f" and {len(files) - SHOWN_MAX} more" if len(files) > SHOWN_MAX else ""
    size_gb = sum(file.size_bytes for file in files) / 1e9
    return (
        f"left out {names}{more} ({size_gb:.2f} GB): the same weights are there as safetensors; "
        "all-files=1 or an include takes them"
    )


def _complete_stems(files: Iterable[Candidate]) -> dict[str, set[str]]:
    """By folder, the names of the checkpoints of which every shard is there as safetensors."""
    stems: dict[str, set[str]] = {}
    shards: dict[tuple[str, str, int], set[int]] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        match = _KEPT.fullmatch(name)
        if match is None:
            continue
        count = int(match["count"] or 1)
        numbers = shards.setdefault((folder, match["stem"], count), set())
        numbers.add(int(match["number"] or 1))
        if len(numbers) == count:
            stems.setdefault(folder, set()).add(match["stem"])
    return stems


def _is_duplicate(path: str, stems: dict[str, set[str]]) -> bool:
    if path.startswith(_ORIGINAL):
        return bool(stems.get("")) and path.endswith(_WEIGHTS)
    folder, _, name = path.rpartition("/")
    kept = stems.get(folder)
    if not kept:
        return False
    if _META.fullmatch(name):
        return "model" in kept
    match = _OTHER.fullmatch(name)
    if match is None:
        return False
    stem = match["stem"]
    if _FLAX_DIFFUSERS.fullmatch(stem):
        stem = "diffusion_pytorch_model"
    return _STEMS.get((stem, match["format"]), stem) in kept
