"""The clock on the wall. Everything that decides takes `now_s`; this is where it comes from."""

from __future__ import annotations

import time


def wall_clock_s() -> float:
    """Seconds since the epoch, for what is compared across processes and reboots."""
    return time.time()  # noqa: TID251 - the one place
