"""Numbers as Kubernetes' API has them: `7`, `7500m`. Pure."""

from __future__ import annotations

import math
from typing import Final

from modelcache.errors import UsageError

_MILLI: Final = 1000
VALUE_MAX: Final = 2**63 // _MILLI - 1  # a Quantity is read as 64 bits of thousandths


def quantity(value: float) -> str:
    """The number in thousandths, rounded up: of replicas, a part of one more is one more.

    Raises UsageError for what is no finite number, or too large.
    """
    if not math.isfinite(value) or abs(value) > VALUE_MAX:
        raise UsageError("the value is no number that a Quantity can have")
    milli = math.ceil(round(value * _MILLI, 6))
    return str(milli // _MILLI) if milli % _MILLI == 0 else f"{milli}m"
