"""`load` and `iter_tensors`: from a model to tensors.

It joins what the other modules know: which files, which bytes, which memory, which library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from modelcache.errors import BadTensors, NotFound, UsageError
from modelcache.loader.frameworks import Framework, framework_named
from modelcache.loader.header import (
    PREFIX_BYTES,
    Header,
    header_bytes,
    parse_header,
    shown,
)
from modelcache.loader.index import INDEX_BYTES_MAX, SUFFIX, Shards, find_shards
from modelcache.loader.local import LocalFile
from modelcache.loader.plan import PAGE_BYTES, Region, regions
from modelcache.loader.reading import Filled, Reader, Reading
from modelcache.loader.slicing import AxisRule, Choice, Part, chosen

WINDOW_BYTES: Final = 128 << 20  # memory that is only passed through: two regions
THREADS_MAX: Final = 64
READING_THREADS: Final = 32  # on any machine: see `Folder`
HEAD_BYTES: Final = 128 << 10  # read of each file first: all of most headers, in one request
HEADERS_AT_ONCE: Final = 16


class Order(StrEnum):
    """Which tensor comes next."""

    FILE = "file"
    ARRIVAL = "arrival"


class TensorFile(Reader, Protocol):
    """A file of tensors, opened."""

    @property
    def size_bytes(self) -> int:
        """All of it."""
        ...

    def head(self, start: int, size_bytes: int) -> bytes:
        """A few bytes, such as a header; first from the start of the file, then what follows."""
        ...

    def close(self) -> None:
        """Close. Idempotent."""
        ...


class Model(Protocol):
    """A model whose tensors are wanted, wherever it is.

    page_bytes: what reads should begin and end on. threads: that should read it at once.
    """

    page_bytes: int
    threads: int

    def names(self, *, deep: bool) -> Sequence[str]:
        """Its files, relative; without `deep` those at the top will do."""
        ...

    def small(self, name: str) -> bytes:
        """All of a small file."""
        ...

    def open(self, name: str) -> TensorFile:
        """One of its files of tensors."""
        ...

    def complete(self) -> None:
        """Called when every tensor was given: raises what makes the model worthless after all."""
        ...

    def close(self) -> None:
        """Let go of what is held. Idempotent."""
        ...


class Folder:
    """A directory of this machine, or a single file.

    Four threads keep a disk busy. But fresh memory is zeroed before a disk may fill it, and threads
    that wait for their turn at the disk have done that: 32 of them read 3.6 GB/s on two processors
    where four read 3.3 and the disk gave 3.8. Of a warm file either read 12.5 GB/s.
    """

    page_bytes = PAGE_BYTES

    def __init__(
        self, path: Path, *, direct: bool, release: Callable[[], None] | None = None
    ) -> None:
        """release: called when it is closed. Raises NotFound."""
        self.threads = READING_THREADS
        self._release = release
        self._direct = direct
        self._root = path.parent if path.is_file() else path
        self._only = [path.name] if path.is_file() else None
        if not path.exists():
            raise NotFound(f"{path} is not there")

    def names(self, *, deep: bool) -> Sequence[str]:
        """See Model."""
        if self._only is not None:
            return self._only
        found = []
        for folder, below, files in os.walk(self._root):
            at = Path(folder).relative_to(self._root)
            found += [str(at / name) for name in files if name.endswith((SUFFIX, ".json"))]
            if not deep:
                below.clear()
        return found

    def small(self, name: str) -> bytes:
        """See Model. Raises BadTensors for one that is not small."""
        file = LocalFile(self._root / name, direct=False)
        try:
            if file.size_bytes > INDEX_BYTES_MAX:
                raise BadTensors(f"{name} has {file.size_bytes} bytes, which is no index")
            return file.head(0, file.size_bytes)
        finally:
            file.close()

    def open(self, name: str) -> TensorFile:
        """See Model."""
        return LocalFile(self._root / name, direct=self._direct)

    def complete(self) -> None:
        """See Model: what is here is here."""

    def close(self) -> None:
        """See Model."""
        if self._release is not None:
            self._release()


@dataclass(frozen=True, slots=True)
class Wishes:
    """How tensors are wanted. threads: that read at once; None for as many as pay.

    window_bytes: how much may be read ahead of whoever consumes; None for all.
    """

    framework: Framework
    choice: Choice
    order: Order
    files: tuple[str, ...] = ()
    threads: int | None = None
    window_bytes: int | None = None

    def whole(self) -> Wishes:
        """The same for a caller who keeps everything: tensors are the window, or pass through."""
        return replace(self, window_bytes=None if self.framework.keeps_memory else WINDOW_BYTES)


@dataclass(slots=True)
class Plan:
    """What will be read: the regions of all files, and parts that have no bytes."""

    regions: list[Region]
    empty: list[Part]
    names: list[str]


def tensors_of(open_model: Callable[[], Model], wishes: Wishes) -> Iterator[tuple[str, Any]]:
    """Every wanted tensor with its name. Those without elements come first.

    Nothing is opened before the first is asked for; the model is closed at the end, also when it
    is left early.
    """
    framework = wishes.framework
    with ExitStack() as stack:
        model = open_model()
        stack.callback(model.close)
        shards = find_shards(model.names(deep=bool(wishes.files)), model.small, wishes.files)
        files = [_opened(model, name, stack) for name in shards.files]
        headers = _headers(list(zip(shards.files, files, strict=True)))
        plan = _plan(shards, headers, wishes, model.page_bytes)
        for part in plan.empty:
            yield part.name, framework.make(part, None, 0)
        reading = stack.enter_context(
            Reading(
                files,
                plan.regions,
                threads=wishes.threads or model.threads,
                allocate=framework.allocate,
                window_bytes=wishes.window_bytes,
            )
        )
        for filled in _iterate(reading, wishes.order):
            part = plan.regions[filled.region].parts[filled.part]
            yield part.name, framework.make(part, filled.memory, filled.place)
            del filled  # or its memory would outlive the tensor by one
        model.complete()


def _iterate(reading: Reading, order: Order) -> Iterator[Filled]:
    return reading.in_order() if order is Order.FILE else reading.as_they_come()


def _opened(model: Model, name: str, stack: ExitStack) -> TensorFile:
    file = model.open(name)
    stack.callback(file.close)
    return file


def _headers(files: Sequence[tuple[str, TensorFile]]) -> list[Header]:
    """All of them at once: each may be a request to somewhere far away."""
    with ThreadPoolExecutor(max_workers=HEADERS_AT_ONCE) as pool:
        return list(pool.map(lambda pair: _header(*pair), files))


def _header(name: str, file: TensorFile) -> Header:
    size = file.size_bytes
    data = file.head(0, min(HEAD_BYTES, size))
    length = header_bytes(data[:PREFIX_BYTES], size, name)
    end = PREFIX_BYTES + length
    if end > len(data):
        data += file.head(len(data), end - len(data))
    return parse_header(data[PREFIX_BYTES:end], size, name)


def _plan(shards: Shards, headers: Sequence[Header], wishes: Wishes, page_bytes: int) -> Plan:
    plan = Plan([], [], [])
    seen: dict[str, str] = {}
    for number, (file, header) in enumerate(zip(shards.files, headers, strict=True)):
        shards.check(file, header)
        parts = chosen(header.tensors, wishes.choice)
        for part in parts:
            other = seen.setdefault(part.name, file)
            if other != file:
                raise BadTensors(f"tensor {shown(part.name)} is both in {other} and in {file}")
        plan.names += [part.name for part in parts]
        plan.empty += [part for part in parts if not part.size_bytes]
        full = (part for part in parts if part.size_bytes)
        plan.regions += regions(number, full, page_bytes=page_bytes)
        wishes.framework.check(parts)
    if not plan.names and wishes.choice.names:
        raise UsageError("the model has no tensor of such a name")
    return plan


def wishes(
    *,
    framework: str,
    device: str,
    dtype: object,
    names: Iterable[str],
    files: Iterable[str],
    rank: int,
    world_size: int,
    axes: AxisRule | None,
    order: str,
    threads: int | None,
    window_bytes: int | None,
) -> Wishes:
    """Check what a caller wants, before anything is opened. Raises UsageError and its kinds."""
    if order not in set(Order):
        raise UsageError(f"order {shown(str(order))} is neither file nor arrival")
    if threads is not None and not 1 <= threads <= THREADS_MAX:
        raise UsageError(f"threads must be 1 to {THREADS_MAX}")
    if window_bytes is not None and window_bytes < 0:
        raise UsageError("window_bytes must not be negative")
    if isinstance(names, str) or isinstance(files, str):
        raise UsageError("names and files are lists of globs; write [...] around a single one")
    choice = Choice(tuple(names), rank, world_size, axes if axes is not None else {})
    choice.check()
    if world_size > 1 and axes is None:
        raise UsageError("world_size needs axes: the rule by which tensors are cut")
    library = framework_named(framework, device, dtype)
    return Wishes(library, choice, Order(order), tuple(files), threads, window_bytes)
