"""For PyTorch: `load_file` as in `safetensors.torch`, read as `modelcache.load` reads.

from modelcache.torch import load_file  # instead of safetensors.torch

model.load_state_dict(load_file("model.safetensors", device="cuda"))
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.loader import iter_tensors, load

if TYPE_CHECKING:
    import torch

__all__ = ["load_file", "weights_iterator"]


def load_file(
    filename: str | os.PathLike[str], device: str | int | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file. Raises as `modelcache.load` does.

    As `safetensors.torch.load_file`, but for this: tensors on the CPU are the caller's own memory
    and not a mapping of the file, so that nothing is left to be read from it later.
    """
    return load(Path(filename), framework="torch", device=_named(device))


def weights_iterator(
    model: str | os.PathLike[str], device: str | int | torch.device = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as they come, which is what vLLM's `load_weights` takes."""
    return iter_tensors(
        model if isinstance(model, str) else Path(model), framework="torch", device=_named(device)
    )


def _named(device: str | int | torch.device) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)
