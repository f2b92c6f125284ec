"""Direct or buffered: the table of `write_mode`."""

from __future__ import annotations

import pytest

from modelcache.config import IoMode
from modelcache.domain.ranges import MIB
from modelcache.store import WriteMode
from modelcache.transfer.policy import DIRECT_BYTES_MIN, write_mode

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("mode", "size", "model", "cheap", "reader", "expected"),
    [
        (IoMode.DIRECT, 1, 1, 64 * GIB, True, WriteMode.DIRECT),
        (IoMode.BUFFERED, GIB, GIB, 0, False, WriteMode.BUFFERED),
        (IoMode.AUTO, DIRECT_BYTES_MIN, GIB, 64 * GIB, False, WriteMode.DIRECT),
        (IoMode.AUTO, DIRECT_BYTES_MIN - 1, GIB, 64 * GIB, False, WriteMode.BUFFERED),
        (IoMode.AUTO, GIB, 16 * GIB, 64 * GIB, True, WriteMode.BUFFERED),  # a quarter fits
        (IoMode.AUTO, GIB, 17 * GIB, 64 * GIB, True, WriteMode.DIRECT),
        (IoMode.AUTO, GIB, GIB, 0, True, WriteMode.DIRECT),  # pages are dear, or nobody knows
    ],
)
def test_how_a_blob_is_written(  # noqa: PLR0917
    mode: IoMode, size: int, model: int, cheap: int, reader: bool, expected: WriteMode
):
    chosen = write_mode(
        mode,
        size_bytes=size,
        model_bytes=model,
        cheap_bytes=cheap,
        reader_follows=reader,
    )
    assert chosen is expected
