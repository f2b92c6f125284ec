"""Cells: who exchanges chunks with whom."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.members import Member, cell_of, is_node_id


def members(count: int, zone: str = "") -> list[Member]:
    return [Member(f"10.0.{n // 256}.{n % 256}", 9871, zone) for n in range(count)]


@given(count=st.integers(1, 200), most=st.integers(1, 70))
def test_every_node_finds_the_same_cells_and_none_is_too_large(count: int, most: int) -> None:
    everybody = members(count)
    cells = {}
    for me in everybody:
        cells[me] = frozenset({me, *cell_of(me, reversed(everybody), most=most)})
        assert len(cells[me]) <= most
    assert all(cells[other] == cell for cell in cells.values() for other in cell)
    sizes = Counter(len(cell) for cell in set(cells.values()))
    assert max(sizes) - min(sizes) <= 1, "cells are of one size"


def test_zones_are_apart() -> None:
    here, there = members(3, "a"), members(5, "b")
    assert set(cell_of(here[0], here + there)) == set(here[1:])


def test_a_node_that_is_not_in_the_list_is_still_in_its_cell() -> None:
    me = Member("192.168.0.1", 9871)
    assert set(cell_of(me, members(3))) == set(members(3))


def test_one_node_more_moves_few_others() -> None:
    before = members(128)
    moved = 0
    for me in before:
        old = set(cell_of(me, before, most=64))
        new = set(cell_of(me, [*before, Member("10.9.9.9", 9871)], most=64))
        moved += len(new - old) > 65 // 2 + 1
    assert moved < 64, "most still see mostly those they saw"


def test_node_ids_are_names_that_can_stand_in_a_header_or_a_log() -> None:
    assert is_node_id("gpu-7.zone-a.example")
    for bad in ("", "a b", "a\n", "-a", "a/b", "x" * 300, "é"):
        assert not is_node_id(bad)


def test_addresses_of_version_six_are_in_brackets() -> None:
    assert Member("::1", 9871).address == "[::1]:9871"
    assert Member("node", 1).address == "node:1"
