"""Tensors from safetensors, faster than the usual loaders.

    import modelcache

    tensors = modelcache.load("/models/llama", framework="torch", device="cuda")
    for name, tensor in modelcache.iter_tensors("/models/llama", framework="numpy"):
        ...

It knows how tensors lie in files and how to read those; it must not know who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcache.loader.loading import WINDOW_BYTES, Order, tensors_of, wishes
from modelcache.loader.opening import Place
from modelcache.loader.slicing import AxisRule

if TYPE_CHECKING:
    from modelcache.config import Settings

__all__ = ["AxisRule", "Order", "iter_tensors", "load"]


def load(
    model: str | Path,
    *,
    framework: str = "numpy",
    device: str = "cpu",
    dtype: object = None,
    names: Iterable[str] = (),
    files: Iterable[str] = (),
    rank: int = 0,
    world_size: int = 1,
    axes: AxisRule | None = None,
    threads: int | None = None,
    direct: bool = True,
    through: str = "store",
    max_age_s: float | None = None,
    agent: str | None = None,
    store: Path | str | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """All tensors of a model, by name.

    model: a directory, a safetensors file, a ref, or the id of a model in the store. framework:
    numpy, torch or jax. device: where tensors go, as the framework calls it. dtype: what F16,
    BF16, F32 and F64 become; other types stay. names: globs over tensors' names; all without.
    files: globs over the model's files, if not those of its index, or at its top. rank,
    world_size, axes: only this rank's part of each tensor, cut along the axis that `axes` gives by
    name and shape (a function, or a mapping of globs to axes, the first that matches; None and no
    match: not cut). threads: that read at once. direct: read past the page cache what is not in
    it. through: how a ref's bytes come here: "store" pulls the model and reads it while it
    arrives, "agent" has this node's agent do that (agent: the address of another), "origin"
    reads what is wanted into memory and keeps nothing. max_age_s, store, settings: as for
    `modelcache.pull`.

    Memory in use grows by the tensors and at most 256 MiB. Raises BadTensors for files that
    contradict themselves, NotFound, UsageError, UnsupportedDtype, NoDevice, and what reading
    raises.
    """
    asked = wishes(
        framework=framework,
        device=device,
        dtype=dtype,
        names=names,
        files=files,
        rank=rank,
        world_size=world_size,
        axes=axes,
        order=Order.ARRIVAL,
        threads=threads,
        window_bytes=None,
    ).whole()
    place = Place(model, through, direct, store, settings, max_age_s, agent)
    place.check()
    return dict(tensors_of(place.open, asked))


def iter_tensors(
    model: str | Path,
    *,
    framework: str = "numpy",
    device: str = "cpu",
    dtype: object = None,
    names: Iterable[str] = (),
    files: Iterable[str] = (),
    rank: int = 0,
    world_size: int = 1,
    axes: AxisRule | None = None,
    order: str = Order.ARRIVAL,
    threads: int | None = None,
    window_bytes: int = WINDOW_BYTES,
    direct: bool = True,
    through: str = "store",
    max_age_s: float | None = None,
    agent: str | None = None,
    store: Path | str | None = None,
    settings: Settings | None = None,
) -> Iterator[tuple[str, Any]]:
    """Each tensor with its name, as soon as it is read; see `load` for what is common.

    order: "arrival", or "file" for the order of the files' bytes. window_bytes: how much is read
    ahead of the caller, who decides how long a tensor lives: neighbours in a file share memory,
    which goes when the last of them does. Tensors without elements come first.

    What a caller wants is checked at once; the model is looked for when the first tensor is asked
    for. Of a model that arrives, tensors are given before their file
    is verified: an error after the last of them says that it was not what its origin has. Leaving
    early ends the pull; what has arrived is kept.
    """
    asked = wishes(
        framework=framework,
        device=device,
        dtype=dtype,
        names=names,
        files=files,
        rank=rank,
        world_size=world_size,
        axes=axes,
        order=order,
        threads=threads,
        window_bytes=window_bytes,
    )
    place = Place(model, through, direct, store, settings, max_age_s, agent)
    place.check()
    return tensors_of(place.open, asked)
