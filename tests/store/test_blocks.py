"""Memory for direct reads and writes: aligned, private, advised."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

from modelcache.store.blocks import HUGE_BYTES, in_huge_pages

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def address_of(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def flags_at(address: int) -> set[str]:
    """What the kernel says of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(rest)
    raise AssertionError(hex(address))


@pytest.mark.parametrize("size", [1, HUGE_BYTES, 3 * HUGE_BYTES + 4096])
def test_memory_begins_on_a_huge_page_and_is_all_there(size: int) -> None:
    view = in_huge_pages(size)
    assert len(view) == size
    assert address_of(view) % HUGE_BYTES == 0
    assert (view[0], view[-1]) == (0, 0)
    view[-1] = 7
    assert view[-1] == 7


def test_a_view_keeps_its_memory() -> None:
    view = in_huge_pages(HUGE_BYTES)[4096:8192]
    view[:4] = b"kept"
    gc.collect()
    assert bytes(view[:4]) == b"kept"


def test_memory_is_private_and_no_childs() -> None:
    """A shared mapping gets no huge pages where Linux's default for them stands."""
    view = in_huge_pages(HUGE_BYTES)
    flags = flags_at(address_of(view))
    assert "sh" not in flags
    assert "dc" in flags


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="a kernel without transparent huge pages")
def test_huge_pages_are_asked_for() -> None:
    view = in_huge_pages(HUGE_BYTES)
    assert "hg" in flags_at(address_of(view))
