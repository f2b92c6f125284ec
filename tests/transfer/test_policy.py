"""Direct or buffered: the table of `write_mode`."""

from __future__ import annotations

import pytest

from modelcache.config import IoMode
from modelcache.domain.ranges import MIB
from modelcache.store import WriteMode
from modelcache.transfer.policy import DIRECT_BYTES_MIN, available_memory_bytes, write_mode

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("mode", "size", "model", "available", "reader", "expected"),
    [
        (IoMode.DIRECT, 1, 1, 64 * GIB, True, WriteMode.DIRECT),
        (IoMode.BUFFERED, GIB, GIB, 0, False, WriteMode.BUFFERED),
        (IoMode.AUTO, DIRECT_BYTES_MIN, GIB, 64 * GIB, False, WriteMode.DIRECT),
        (IoMode.AUTO, DIRECT_BYTES_MIN - 1, GIB, 64 * GIB, False, WriteMode.BUFFERED),
        (IoMode.AUTO, GIB, 16 * GIB, 64 * GIB, True, WriteMode.BUFFERED),  # a quarter fits
        (IoMode.AUTO, GIB, 17 * GIB, 64 * GIB, True, WriteMode.DIRECT),
        (IoMode.AUTO, GIB, GIB, 0, True, WriteMode.DIRECT),  # nobody knows how much there is
    ],
)
def test_how_a_blob_is_written(  # noqa: PLR0917
    mode: IoMode, size: int, model: int, available: int, reader: bool, expected: WriteMode
):
    chosen = write_mode(
        mode,
        size_bytes=size,
        model_bytes=model,
        available_bytes=available,
        reader_follows=reader,
    )
    assert chosen is expected


def test_the_kernel_tells_how_much_memory_there_is():
    assert available_memory_bytes() > 16 * MIB
