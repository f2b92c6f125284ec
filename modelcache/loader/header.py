"""The header of a safetensors file, believed only as far as it agrees with itself and the file.

The format: 8 bytes, little-endian, with the length of the header; that much JSON, a table of
`{name: {"dtype", "shape", "data_offsets"}}` and `"__metadata__"`; then the data, to the end of the
file. Offsets count from the start of the data, and the tensors cover it without gap or overlap.
Nothing here does I/O, and nothing is allocated by what a header says before it was checked.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from modelcache.errors import BadTensors
from modelcache.loader.dtypes import DTYPES, Dtype

PREFIX_BYTES: Final = 8
HEADER_BYTES_MAX: Final = 100_000_000  # the format's own limit
RANK_MAX: Final = 32  # dimensions that every NumPy and PyTorch takes
SIZE_MAX: Final = 1 << 62  # bytes, as if no dimension were 0: what an index must be able to count
NAME_SHOWN_MAX: Final = 100  # characters of a name in a message: it may have millions
METADATA: Final = "__metadata__"
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its file has it: bytes `[start, end)` of the file, row-major."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file holds; tensors in the order of their bytes."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def header_bytes(prefix: bytes, size_bytes: int, label: str) -> int:
    """The length of the JSON behind the first 8 bytes of a file of `size_bytes`.

    label: what the file is called in messages. Raises BadTensors.
    """
    if size_bytes < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise BadTensors(f"{label} is no safetensors file: it has {size_bytes} bytes")
    (length,) = struct.unpack_from("<Q", prefix)
    if length > HEADER_BYTES_MAX:
        raise BadTensors(
            f"{label} is no safetensors file: its header would have {length} bytes, "
            f"more than {HEADER_BYTES_MAX}"
        )
    if PREFIX_BYTES + length > size_bytes:
        raise BadTensors(
            f"{label} is cut off: its header has {length} bytes, the file {size_bytes}"
        )
    return int(length)


def parse_header(data: bytes, size_bytes: int, label: str) -> Header:
    """Read the JSON of a header, and check it against a file of `size_bytes`.

    data: all of what `header_bytes` counted. Raises BadTensors.
    """
    table = parse_object(data, f"header of {label}")
    metadata = _metadata(table.pop(METADATA, {}), label)
    first = PREFIX_BYTES + len(data)
    tensors = [_tensor(name, entry, first, label) for name, entry in table.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    at = first
    for tensor in tensors:
        if tensor.start != at:
            what = "overlaps the one before it" if tensor.start < at else "leaves a gap before it"
            raise BadTensors(f"{label}: tensor {shown(tensor.name)} {what}")
        at = tensor.end
    if at != size_bytes:
        what = "is cut off" if at > size_bytes else "has bytes that belong to no tensor"
        raise BadTensors(f"{label} {what}: tensors end at {at}, the file has {size_bytes} bytes")
    return Header(tuple(tensors), metadata)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object whose keys are all different. Raises BadTensors."""
    if not data.startswith(b"{"):
        raise BadTensors(f"{what} is no JSON object")
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=_distinct)
    except _Repeated as error:
        raise BadTensors(f"{what} has {shown(str(error))} twice") from error
    except (ValueError, RecursionError) as error:
        raise BadTensors(f"{what} is no JSON: {str(error)[:NAME_SHOWN_MAX]}") from error
    assert isinstance(parsed, dict)  # noqa: S101 - it began with a brace
    return parsed


def shown(name: str) -> str:
    """A name from a file as it may stand in a message."""
    return repr(name[:NAME_SHOWN_MAX] + ("…" if len(name) > NAME_SHOWN_MAX else ""))


class _Repeated(Exception):
    """A key that an object has twice: readers would differ over which counts."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Repeated(name)
            seen.add(name)
    return found


def _metadata(value: object, label: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadTensors(f"{label}: {METADATA} is no table of texts")
    return value


def _tensor(name: str, entry: object, first: int, label: str) -> Tensor:
    where = f"{label}: tensor {shown(name)}"
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise BadTensors(f"{where} lacks one of {', '.join(sorted(_FIELDS))}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise BadTensors(f"{where} has the unknown type {shown(str(entry['dtype']))}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > RANK_MAX:
        raise BadTensors(f"{where} has no shape of up to {RANK_MAX} dimensions")
    if not _counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - a start and an end
        raise BadTensors(f"{where} has no two offsets")
    start, end = offsets
    bits = prod(shape) * dtype.bits
    if prod(size or 1 for size in shape) * dtype.bits > SIZE_MAX * 8:
        raise BadTensors(f"{where} has a shape that nothing could hold")
    if bits % 8 or end - start != bits // 8:
        raise BadTensors(
            f"{where} has {end - start} bytes, where its type and shape take {bits / 8:g}"
        )
    return Tensor(name, dtype, tuple(shape), first + start, first + end)


def _counts(values: object) -> bool:
    """Whether it is a list of numbers from 0 to what 64 bits hold; true is no number."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= SIZE_MAX for value in values
    )
