"""From what people write to what settings hold: sizes, durations, choices, lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from modelcache.domain.wanted import PRIORITY_MAX
from modelcache.errors import InvalidConfig

OTHERS: Final = "*"
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `1.5GB`, `2T` or a plain number. Raises InvalidConfig."""
    match = re.fullmatch(r"\s*([0-9]+)(?:\.([0-9]+))?\s*(?:([kKMGTP])(i?))?[bB]?\s*", text)
    if not match:
        raise InvalidConfig(f"{text!r} is not a size; write for example 512MiB or 1.5GB")
    whole, fraction, prefix, binary = match.groups(default="")
    unit: int = (1024 if binary else 1000) ** " KMGTP".index(prefix.upper() or " ")
    scale: int = 10 ** len(fraction)
    return int(whole) * unit + int(fraction or 0) * unit // scale


def parse_duration(text: str) -> float:
    """Seconds from `90s`, `5m`, `1.5h`, `2d` or a plain number. Raises InvalidConfig."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*", text)
    if not match:
        raise InvalidConfig(f"{text!r} is not a duration; write for example 90s or 5m")
    number, unit = match.groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit or "s"]


def parse_priority_limits(lines: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """`30: 200MB` as (highest priority, bytes a second), by priority. Raises InvalidConfig."""
    found: dict[int, int] = {}
    for line in lines:
        match = re.fullmatch(r"\s*([0-9]{1,3})\s*:\s*(\S.*)", line)
        if match is None or int(match[1]) > PRIORITY_MAX:
            raise InvalidConfig(
                f"{line[:80]!r} is not PRIORITY: SIZE with a priority up to {PRIORITY_MAX}; "
                "write for example 30: 200MB"
            )
        limit = parse_size(match[2])
        if not limit:
            raise InvalidConfig(f"{line[:80]!r} would let nothing through; leave the line out")
        found[int(match[1])] = limit
    return tuple(sorted(found.items()))


def parse_quotas(lines: Iterable[str]) -> dict[str, int]:
    """`team-a: 500GB` as bytes by namespace; `*` stands for the others. Raises InvalidConfig."""
    found: dict[str, int] = {}
    for line in lines:
        name, colon, size = line.partition(":")
        if not colon or not (name.strip() == OTHERS or _NAMESPACE.fullmatch(name.strip())):
            raise InvalidConfig(
                f"{line[:80]!r} is not NAMESPACE: SIZE; write for example team-a: 500GB, and "
                f"{OTHERS} for all others"
            )
        found[name.strip()] = parse_size(size)
    return found


def convert(value: Any, current: Any, where: str) -> Any:  # noqa: ANN401, PLR0911
    """Bring `value` (TOML or text) to the type of `current`."""
    try:
        match current:
            case bool():
                return value if isinstance(value, bool) else _parse_bool(str(value))
            case StrEnum():
                return _choice(value, type(current))
            case int():
                return value if type(value) is int else parse_size(str(value))
            case float():
                return float(value) if type(value) in {int, float} else _parse_number(str(value))
            case Path():
                return _path(value)
            case tuple():
                return tuple(_text(item) for item in _lines(value))
            case _:
                return _text(value)
    except (InvalidConfig, ValueError, RuntimeError) as error:  # RuntimeError: `~` of nobody
        raise InvalidConfig(f"{where}: {error}") from error


def _choice(value: object, known: type[StrEnum]) -> StrEnum:
    if value not in list(known):
        raise InvalidConfig(f"{value!r} is none of {', '.join(known)}")
    return known(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidConfig(f"expected text, found {type(value).__name__}")
    if "\x00" in value:
        raise InvalidConfig("text has a NUL character in it")
    return value


def _lines(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else list(_text(value).splitlines())


def _path(value: object) -> Path:
    text = _text(value)
    if not text:
        raise InvalidConfig("expected a path, found nothing")
    return Path(text).expanduser()


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise InvalidConfig(f"{text!r} is not a yes or no; write true or false")


def _parse_number(text: str) -> float:
    if re.fullmatch(r"\s*[0-9.]+(e-?[0-9]+)?\s*", text):  # not `nan` and `inf`
        return float(text)
    return parse_duration(text)
