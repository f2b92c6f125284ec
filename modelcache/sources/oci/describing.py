"""What can be known of a model from its own files, for ModelPack's config.

Read are `config.json` and the headers of safetensors files: bounded, and never more than hints. A
file that cannot be understood says nothing; it is pushed all the same.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from modelcache.errors import UsageError
from modelcache.sources.oci.kinds import format_of
from modelcache.sources.oci.outgoing import Outgoing
from modelcache.sources.oci.packing import weights_of

CONFIG_BYTES_MAX: Final = 4 << 20
HEADER_BYTES_MAX: Final = 100 << 20  # safetensors' own bound
EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"  # reproducible-builds.org's
_PRECISIONS: Final = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "fp8",
    "int8": "int8",
}
_SCALES: Final = ((10**15, "q"), (10**12, "t"), (10**9, "b"), (10**6, "m"), (10**3, "k"))


def describe(
    name: str, layers: Sequence[Outgoing], environment: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """`descriptor` and `config` of ModelPack. name: of the model.

    Raises UsageError for a SOURCE_DATE_EPOCH that is no number of seconds.
    """
    files = {layer.name: layer.file for layer in layers}
    settings = _settings(files.get("config.json"))
    descriptor: dict[str, Any] = {"name": name}
    created = created_at(environment)
    if created:
        descriptor["createdAt"] = created
    if family := _text(settings, "model_type"):
        descriptor["family"] = family
    return {"descriptor": descriptor, "config": _config(settings, weights_of(layers))}


def created_at(environment: Mapping[str, str]) -> str | None:
    """RFC 3339, of the moment that the environment names: the clock would change the digest."""
    text = environment.get(EPOCH_VARIABLE, "")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{EPOCH_VARIABLE}={text[:40]!r} is not a number of seconds") from None


def _config(settings: Mapping[str, Any], weights: Sequence[Outgoing]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(settings.get("architectures"), list) or settings.get("num_attention_heads"):
        found["architecture"] = "transformer"
    formats = Counter[str]()
    for layer in weights:
        formats[format_of(layer.name) or ""] += layer.file_bytes
    formats.pop("", None)
    if formats:
        found["format"] = formats.most_common(1)[0][0]
    precision = _text(settings, "torch_dtype") or _text(settings, "dtype")
    if precision:
        found["precision"] = _PRECISIONS.get(precision, precision)
    quantization = settings.get("quantization_config")
    method = _text(quantization, "quant_method") if isinstance(quantization, dict) else None
    if method:
        found["quantization"] = method  # several parameters in one number: they cannot be counted
    else:
        count = _parameters(weights)
        if count:
            found["paramSize"] = _scaled(count)
    return found


def _settings(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(CONFIG_BYTES_MAX + 1)[:CONFIG_BYTES_MAX])
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(settings: Mapping[str, Any], name: str) -> str | None:
    value = settings.get(name)
    return value if isinstance(value, str) and value else None


def _parameters(weights: Iterable[Outgoing]) -> int | None:
    """The number of parameters in safetensors files; None where a file cannot be counted."""
    total = 0
    for layer in weights:
        if format_of(layer.name) != "safetensors":
            continue
        count = _tensors(layer.file) if layer.file else None
        if count is None:
            return None
        total += count
    return total


def _tensors(path: Path) -> int | None:
    """safetensors: eight bytes little-endian, a JSON header of that length, the tensors."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER_BYTES_MAX:
                return None
            header = json.loads(file.read(length))
        tensors = (tensor for name, tensor in header.items() if name != "__metadata__")
        return sum(int(math.prod(tensor["shape"])) for tensor in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None


def _scaled(count: int) -> str:
    """`6.7b`: one digit behind the point at most, as the specification has it."""
    scale, letter = next((step for step in _SCALES if count >= step[0]), _SCALES[-1])
    value = count / scale
    return f"{round(value) if value >= 100 else round(value, 1):g}{letter}"  # noqa: PLR2004
