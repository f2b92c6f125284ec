"""Files that somebody else replaces while we run: certificates, keys, tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence

State = tuple[tuple[int, int, int, int], ...]


def state_of(paths: Sequence[str]) -> State:
    """What changes when one of the files does, be it replaced, rewritten, or behind another link.

    Raises OSError when one is not there.
    """
    return tuple(
        (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        for status in map(os.stat, paths)
    )
