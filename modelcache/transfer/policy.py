"""Whether a blob is written past the page cache or through it.

`bench/io_policy.py` holds the measurements. In short: direct writes run at the disk's speed for
next to no CPU, whatever state memory is in, but a reader that comes next goes to the disk. Through
the page cache that reader finds everything in memory, and the pull takes no longer as long as
pages are cheap; where they are not it takes several times as long and several times the CPU. So
large blobs go through the page cache only if somebody reads them next and pages are cheap. Small
ones are not worth the alignment.
"""

from __future__ import annotations

from typing import Final

from modelcache.config import IoMode
from modelcache.domain.ranges import MIB
from modelcache.store import WriteMode

DIRECT_BYTES_MIN: Final = 8 * MIB  # below, a direct write saves less than its set-up costs
MEMORY_SHARE: Final = 0.25  # of cheap memory that a model may take when a reader follows


def write_mode(
    mode: IoMode, *, size_bytes: int, model_bytes: int, cheap_bytes: int, reader_follows: bool
) -> WriteMode:
    """How to write one blob of `size_bytes` that belongs to a pull of `model_bytes`.

    cheap_bytes: what `cheap_memory_bytes` says. reader_follows: somebody waits for the model.
    """
    match mode:
        case IoMode.DIRECT:
            return WriteMode.DIRECT
        case IoMode.BUFFERED:
            return WriteMode.BUFFERED
        case IoMode.AUTO:
            cheap = model_bytes <= MEMORY_SHARE * cheap_bytes
            if size_bytes < DIRECT_BYTES_MIN or (reader_follows and cheap):
                return WriteMode.BUFFERED
            return WriteMode.DIRECT
