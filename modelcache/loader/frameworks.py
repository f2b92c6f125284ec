"""What tensors become: arrays of NumPy, tensors of PyTorch, arrays of JAX.

Each is a view of the memory that was read into, unless it has to be converted, moved to a device,
or begins at an address that is no multiple of its element's size. The libraries are imported when
they are asked for; none is needed to install modelcache.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Protocol

from modelcache.errors import NoDevice, UnsupportedDtype, UsageError
from modelcache.loader.dtypes import Dtype
from modelcache.loader.header import shown
from modelcache.loader.memory import Memory, anonymous
from modelcache.loader.plan import PAGE_BYTES
from modelcache.loader.slicing import Part


class Framework(Protocol):
    """One library's tensors."""

    keeps_memory: bool
    """Whether what is made goes on using the memory that was read into."""

    def allocate(self, size_bytes: int) -> Memory:
        """Memory on a page boundary."""
        ...

    def check(self, parts: Iterable[Part]) -> None:
        """Raises UnsupportedDtype before anything is read."""
        ...

    def make(self, part: Part, memory: Memory | None, place: int) -> Any:  # noqa: ANN401
        """The tensor whose bytes begin at `place`; None as memory for one without elements."""
        ...


def framework_named(name: str, device: str, dtype: object) -> Framework:
    """Raises UsageError for an unknown or missing one, NoDevice, UnsupportedDtype."""
    makers: dict[str, Callable[[str, str | None], Framework]] = {
        "numpy": NumPy,
        "torch": Torch,
        "pt": Torch,
        "jax": Jax,
    }
    if name not in makers:
        raise UsageError(f"framework {shown(name)} is none of numpy, torch, jax")
    return makers[name](device, None if dtype is None else _dtype_name(dtype))


def _dtype_name(dtype: object) -> str:
    """`torch.bfloat16`, `numpy.float32`, `dtype("float32")` and "float32" by one name."""
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    return str(name).removeprefix("torch.")


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this needs {name}, which is not installed; install modelcache[{extra}]"
        ) from error


class NumPy:
    """Arrays, writable, on the CPU. BF16 and F8 need `ml_dtypes`, or a dtype to become."""

    def __init__(self, device: str, dtype: str | None) -> None:
        if device != "cpu":
            raise NoDevice(f"NumPy has no device {shown(device)}; its arrays are in memory")
        self._np = _library("numpy", "numpy")
        self._dtype = None if dtype is None else self._target(dtype)
        self.keeps_memory = dtype is None

    def allocate(self, size_bytes: int) -> Memory:
        """See Framework."""
        return anonymous(size_bytes)

    def check(self, parts: Iterable[Part]) -> None:
        """See Framework."""
        for dtype, name in {part.dtype: part.name for part in parts}.items():
            if not (self._dtype is not None and dtype.name == "BF16"):
                self._own(dtype, name)

    def make(self, part: Part, memory: Memory | None, place: int) -> Any:  # noqa: ANN401
        """See Framework."""
        np = self._np
        if memory is None:
            data = np.empty(0, np.uint8)
        else:
            data = np.frombuffer(memory.owner, np.uint8, part.size_bytes, memory.offset + place)
            if (memory.offset + place) % max(1, part.dtype.item_bytes):
                data = data.copy()
        if self._dtype is None or not part.dtype.floating:
            return data.view(self._own(part.dtype, part.name)).reshape(part.shape)
        if part.dtype.name == "BF16":  # the upper half of a float32
            wide = data.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32).reshape(part.shape).astype(self._dtype, copy=False)
        return data.view(self._own(part.dtype, part.name)).reshape(part.shape).astype(self._dtype)

    def _own(self, dtype: Dtype, name: str) -> Any:  # noqa: ANN401 - a NumPy dtype
        if dtype.numpy and not dtype.extra:
            return self._np.dtype(dtype.numpy)
        if dtype.numpy:
            try:
                return self._np.dtype(getattr(importlib.import_module("ml_dtypes"), dtype.numpy))
            except (ModuleNotFoundError, AttributeError):
                pass
        more = "; install ml_dtypes" if dtype.numpy else ""
        other = ', or ask for dtype="float32"' if dtype.name == "BF16" else ""
        raise UnsupportedDtype(
            f"tensor {shown(name)} is of type {dtype.name}, which NumPy lacks{more}{other}"
        )

    def _target(self, dtype: str) -> Any:  # noqa: ANN401 - a NumPy dtype
        known = {"float16", "float32", "float64"}
        if dtype in known:
            return self._np.dtype(dtype)
        if dtype == "bfloat16":
            return self._own(Dtype("BF16", 16, "bfloat16", extra=True), "dtype")
        raise UnsupportedDtype(f"dtype {shown(dtype)} is none of bfloat16, {', '.join(known)}")


class Jax:
    """Arrays of JAX, handed over by DLPack. On the CPU they share memory where JAX can."""

    def __init__(self, device: str, dtype: str | None) -> None:
        self._jax = _library("jax", "jax")
        self._numpy = NumPy("cpu", dtype)
        self.keeps_memory = self._numpy.keeps_memory and device == "cpu"
        try:
            self._device = self._jax.devices(*device.split(":")[:1])[
                int(device.partition(":")[2] or 0)
            ]
        except (RuntimeError, IndexError, ValueError) as error:
            raise NoDevice(f"JAX has no device {shown(device)} here") from error

    def allocate(self, size_bytes: int) -> Memory:
        """See Framework."""
        return anonymous(size_bytes)

    def check(self, parts: Iterable[Part]) -> None:
        """See Framework."""
        self._numpy.check(parts)

    def make(self, part: Part, memory: Memory | None, place: int) -> Any:  # noqa: ANN401
        """See Framework."""
        array = self._numpy.make(part, memory, place)
        kind = array.dtype
        if kind.kind == "V" or kind.num >= 256:  # noqa: PLR2004 - a type that DLPack lacks
            bits = array.view(f"uint{kind.itemsize * 8}")
            given = self._jax.dlpack.from_dlpack(bits)
            given = self._jax.lax.bitcast_convert_type(given, kind)
        else:
            given = self._jax.dlpack.from_dlpack(array)
        return self._jax.device_put(given, self._device)


class Torch:
    """Tensors. For a GPU they are read into pinned memory and copied from there."""

    def __init__(self, device: str, dtype: str | None) -> None:
        self._torch = _library("torch", "torch")
        self._dtype = None if dtype is None else self._named(dtype)
        if self._dtype is not None and not self._dtype.is_floating_point:
            raise UnsupportedDtype(f"dtype {shown(str(dtype))} is no floating-point type")
        self._device = self._checked(device)
        self.keeps_memory = dtype is None and self._device.type == "cpu"
        self._pinned = self._device.type == "cuda"

    def allocate(self, size_bytes: int) -> Memory:
        """See Framework."""
        if not self._pinned:
            return anonymous(size_bytes)
        arena = self._torch.empty(size_bytes + PAGE_BYTES, dtype=self._torch.uint8, pin_memory=True)
        offset = -arena.data_ptr() % PAGE_BYTES
        # By its address: PyTorch hands out a buffer by way of NumPy only, which need not be here.
        raw = (ctypes.c_ubyte * size_bytes).from_address(arena.data_ptr() + offset)
        return Memory(memoryview(raw).cast("B"), arena, offset)

    def check(self, parts: Iterable[Part]) -> None:
        """See Framework."""
        for dtype, name in {part.dtype: part.name for part in parts}.items():
            self._own(dtype, name)

    def make(self, part: Part, memory: Memory | None, place: int) -> Any:  # noqa: ANN401
        """See Framework."""
        torch = self._torch
        own = self._own(part.dtype, part.name)
        if memory is None:
            made = torch.empty(part.shape, dtype=own)
        else:
            at = memory.offset + place
            data = memory.owner
            if not isinstance(data, torch.Tensor):
                data = torch.frombuffer(data, dtype=torch.uint8, count=part.size_bytes, offset=at)
            else:
                data = data[at : at + part.size_bytes]
            if at % part.dtype.item_bytes:
                data = data.clone()
            made = data.view(own).reshape(part.shape)
        wanted = self._dtype if part.dtype.floating else None
        # Waited for: the pinned memory is used again when this returns.
        return made.to(self._device, dtype=wanted) if wanted else made.to(self._device)

    def _own(self, dtype: Dtype, name: str) -> Any:  # noqa: ANN401 - a dtype of PyTorch
        found = getattr(self._torch, dtype.torch, None) if dtype.torch else None
        if found is None:
            raise UnsupportedDtype(
                f"tensor {shown(name)} is of type {dtype.name}, which this PyTorch lacks"
            )
        return found

    def _named(self, dtype: str) -> Any:  # noqa: ANN401 - a dtype of PyTorch
        found = getattr(self._torch, dtype, None)
        if not isinstance(found, self._torch.dtype):
            raise UnsupportedDtype(f"dtype {shown(dtype)} is none of PyTorch's")
        return found

    def _checked(self, device: str) -> Any:  # noqa: ANN401 - a device of PyTorch
        torch = self._torch
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            why = str(error).partition("\n")[0][:200]
            raise NoDevice(f"PyTorch has no device {shown(device)} here: {why}") from error
        return found
