"""Numbers as people read them."""

from __future__ import annotations

from typing import Final

_STEPS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


def size(size_bytes: float) -> str:
    """`1.5 GB`: decimal prefixes, as networks and disks are sold."""
    value = float(size_bytes)
    for unit in _STEPS:
        digits = 0 if unit == "B" or abs(round(value, 1)) >= 100 else 1  # noqa: PLR2004
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 1000 or unit == _STEPS[-1]:  # noqa: PLR2004 - decimal prefixes
            return f"{text} {unit}"
        value /= 1000
    raise AssertionError(size_bytes)


def rate(bytes_s: float) -> str:
    """`1.2 GB/s`."""
    return f"{size(bytes_s)}/s"


def duration(seconds: float) -> str:
    """`850 ms`, `4.2 s`, `3m 05s`, `2h 10m`, `3d 4h`."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m {whole % _MINUTE_S:02d}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h {whole % _HOUR_S // _MINUTE_S:02d}m"
    return f"{whole // _DAY_S}d {whole % _DAY_S // _HOUR_S}h"


def count(number: int, noun: str) -> str:
    """`1 file`, `3 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
