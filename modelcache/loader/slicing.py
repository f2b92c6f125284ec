"""Which bytes of each tensor are wanted: some tensors, one rank's part of them. Pure.

Tensor parallelism cuts each tensor along one axis into as many parts as there are ranks. Row-major
bytes of such a part are `count` runs of the same length and distance: one run along the first
axis, one per row along the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod

from modelcache.errors import UsageError
from modelcache.loader.dtypes import Dtype
from modelcache.loader.header import Tensor, shown

AxisRule = Callable[[str, tuple[int, ...]], int | None] | Mapping[str, int | None]
"""Along which axis a tensor is cut, by name and shape; None: every rank has all of it.

As a mapping: globs over names, of which the first that matches counts; no match means None.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """What is wanted of a tensor: `count` runs of `run_bytes`, `stride_bytes` apart, from `start`.

    shape: of the result, which has the runs one behind the other.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    run_bytes: int
    stride_bytes: int
    count: int

    @property
    def size_bytes(self) -> int:
        """Of the result."""
        return self.run_bytes * self.count

    @property
    def end(self) -> int:
        """One past the last byte of the file that is wanted."""
        return self.start + (self.count - 1) * self.stride_bytes + self.run_bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What a caller wants of a model. names: globs over tensors' names; none: all of them."""

    names: tuple[str, ...] = ()
    rank: int = 0
    world_size: int = 1
    axes: AxisRule = field(default_factory=dict)

    def check(self) -> None:
        """Raises UsageError for a rank that cannot be."""
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank {self.rank} of {self.world_size}: ranks count from 0 to world_size - 1"
            )

    def wants(self, name: str) -> bool:
        """Whether a tensor is among the chosen."""
        return not self.names or any(fnmatchcase(name, glob) for glob in self.names)

    def part(self, tensor: Tensor) -> Part:
        """What this rank has of a tensor. Raises UsageError where it cannot be cut."""
        axis = self._axis(tensor) if self.world_size > 1 else None
        if axis is None:
            size_bytes = tensor.end - tensor.start
            return Part(
                *(tensor.name, tensor.dtype, tensor.shape),
                *(tensor.start, size_bytes, size_bytes, 1),
            )
        length = tensor.shape[axis]
        if length % self.world_size:
            raise UsageError(
                f"tensor {shown(tensor.name)} has {length} along axis {axis}, which "
                f"{self.world_size} ranks cannot share evenly; let the rule give None or another "
                "axis for it"
            )
        if not tensor.dtype.item_bytes:
            raise UsageError(f"tensor {shown(tensor.name)}: {tensor.dtype.name} cannot be cut")
        inner_bytes = prod(tensor.shape[axis + 1 :]) * tensor.dtype.item_bytes
        mine = length // self.world_size
        run_bytes, stride_bytes = mine * inner_bytes, length * inner_bytes
        return Part(
            tensor.name,
            tensor.dtype,
            (*tensor.shape[:axis], mine, *tensor.shape[axis + 1 :]),
            tensor.start + self.rank * run_bytes,
            run_bytes,
            stride_bytes,
            prod(tensor.shape[:axis]),
        )

    def _axis(self, tensor: Tensor) -> int | None:
        axis = self._ruled(tensor)
        if axis is None:
            return None
        rank = len(tensor.shape)
        if not -rank <= axis < rank:
            raise UsageError(
                f"tensor {shown(tensor.name)} has {rank} dimensions and cannot be cut along {axis}"
            )
        return axis % rank

    def _ruled(self, tensor: Tensor) -> int | None:
        if callable(self.axes):
            return self.axes(tensor.name, tensor.shape)
        for glob, axis in self.axes.items():
            if fnmatchcase(tensor.name, glob):
                return axis
        return None


def chosen(tensors: Iterable[Tensor], choice: Choice) -> list[Part]:
    """The wanted parts, in the order of the file."""
    return [choice.part(tensor) for tensor in tensors if choice.wants(tensor.name)]
