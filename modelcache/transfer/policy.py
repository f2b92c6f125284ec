"""Whether a blob is written past the page cache or through it.

`bench/io_policy.py` holds the measurements. In short: buffered writes cost several times the CPU
of direct ones, and once dirty pages pile up the kernel makes the writers wait, so large blobs are
written directly. Small ones are not worth the alignment, and a blob that a reader wants next may
stay in memory while pages are plentiful: then the reader does not go to the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from modelcache.config import IoMode
from modelcache.domain.ranges import MIB
from modelcache.store import WriteMode

DIRECT_BYTES_MIN: Final = 8 * MIB  # below, a direct write saves less than its set-up costs
MEMORY_SHARE: Final = 0.25  # of available memory that a model may take when a reader follows


def write_mode(
    mode: IoMode, *, size_bytes: int, model_bytes: int, available_bytes: int, reader_follows: bool
) -> WriteMode:
    """How to write one blob of `size_bytes` that belongs to a pull of `model_bytes`."""
    match mode:
        case IoMode.DIRECT:
            return WriteMode.DIRECT
        case IoMode.BUFFERED:
            return WriteMode.BUFFERED
        case IoMode.AUTO:
            cheap = model_bytes <= MEMORY_SHARE * available_bytes
            if size_bytes < DIRECT_BYTES_MIN or (reader_follows and cheap):
                return WriteMode.BUFFERED
            return WriteMode.DIRECT


def available_memory_bytes() -> int:
    """Memory the kernel could give without swapping (MemAvailable), or 0 where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return 0
