from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from modelcache.loader import memory
from modelcache.loader.memory import anonymous, free_huge_bytes
from modelcache.loader.plan import PAGE_BYTES
from modelcache.store.blocks import HUGE_BYTES


@pytest.mark.parametrize("free", [0, 1 << 40])
@pytest.mark.parametrize("size", [1, PAGE_BYTES, HUGE_BYTES, 5 * HUGE_BYTES + 4096])
def test_memory_is_writable_and_begins_on_a_page(
    size: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_huge_bytes", lambda: free)
    made = anonymous(size)
    assert len(made.view) == size
    address = ctypes.addressof(ctypes.c_char.from_buffer(made.view))
    assert address % PAGE_BYTES == 0
    if free and size >= HUGE_BYTES:
        assert address % HUGE_BYTES == 0
    made.view[-1] = 7
    assert memoryview(made.owner)[made.offset + size - 1] == 7


def test_free_huge_pages_are_those_of_large_orders_in_all_zones(tmp_path: Path) -> None:
    told = tmp_path / "buddyinfo"
    told.write_text(
        "Node 0, zone    DMA32   9069   6186   4054   2528   1124    325     41      2      0"
        "      3    447 \n"
        "Node 0, zone   Normal  34599  29129  12595   6368   2666    787    163     39     14"
        "      0      1 \n"
    )
    if memory.mmap.PAGESIZE == 4096:
        assert free_huge_bytes(told) == 3 * HUGE_BYTES + 448 * 2 * HUGE_BYTES


@pytest.mark.parametrize("text", ["", "nonsense\n", "Node 0, zone Normal a b c d e f g h i j k\n"])
def test_what_cannot_be_read_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "told").write_text(text)
    assert free_huge_bytes(tmp_path / "told") == 0
    assert free_huge_bytes(tmp_path / "none") == 0
