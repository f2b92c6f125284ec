from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.loader.dtypes import DTYPES
from modelcache.loader.header import Tensor
from modelcache.loader.plan import PIECE_BYTES, REST_BYTES_MAX, regions
from modelcache.loader.slicing import Choice, Part

START = 100


def tensor(shape: tuple[int, ...], name: str = "w") -> Tensor:
    size = int(np.prod(shape)) * 4
    return Tensor(name, DTYPES["F32"], shape, START, START + size)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 4),
    st.data(),
)
def test_the_parts_of_all_ranks_are_what_numpy_cuts(
    shape: list[int], axis: int, world_size: int, data: st.DataObject
) -> None:
    axis %= len(shape)
    shape[axis] *= world_size
    rank = data.draw(st.integers(0, world_size - 1))
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    choice = Choice((), rank, world_size, {"*": axis})
    part = choice.part(tensor(tuple(shape)))
    file = bytes(START) + whole.tobytes()
    runs = [file[part.start + n * part.stride_bytes :][: part.run_bytes] for n in range(part.count)]
    expected = np.split(whole, world_size, axis)[rank]
    assert b"".join(runs) == expected.tobytes()
    assert part.shape == expected.shape


def test_the_first_glob_that_matches_decides_and_none_means_all_of_it() -> None:
    choice = Choice((), 1, 2, {"*.norm": None, "*.down.*": 1, "*": 0})
    assert choice.part(tensor((4, 4), "l.norm")).shape == (4, 4)
    assert choice.part(tensor((4, 4), "l.down.w")).shape == (4, 2)
    assert choice.part(tensor((4, 4), "l.up.w")).shape == (2, 4)


def test_a_function_decides_by_name_and_shape() -> None:
    choice = Choice((), 1, 2, lambda name, shape: len(shape) - 1 if name == "w" else None)
    assert choice.part(tensor((3, 4))).shape == (3, 2)
    assert choice.part(tensor((3, 4), "x")).shape == (3, 4)


@pytest.mark.parametrize(
    ("axis", "why"), [(0, "cannot share evenly"), (2, "2 dimensions"), (-3, "2 dimensions")]
)
def test_what_cannot_be_cut_says_which_tensor(axis: int, why: str) -> None:
    with pytest.raises(UsageError, match=f"'w'.*{why}"):
        Choice((), 0, 2, {"*": axis}).part(tensor((3, 4)))


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(UsageError, match="ranks count"):
        Choice((), rank, world_size).check()


@given(st.lists(st.integers(1, 3 * PIECE_BYTES), min_size=1, max_size=40), st.integers(0, 5000))
def test_every_byte_of_every_part_is_in_just_one_piece(sizes: list[int], start: int) -> None:
    parts = []
    for number, size in enumerate(sizes):
        whole = Tensor(str(number), DTYPES["U8"], (size,), start, start + size)
        parts.append(Choice().part(whole))
        start += size
    found = []
    for region in regions(0, parts):
        at = region.start
        for piece in region.pieces:
            assert piece.start == at == region.start + piece.at
            at = piece.end
            for number in region.overlapping(piece):
                part, place = region.parts[number], region.places[number]
                assert region.start + place == part.start
                first = max(place, piece.at)
                last = min(place + part.size_bytes, piece.at + piece.size_bytes)
                assert first < last
                found.append((part.name, last - first))
        assert at == region.start + region.size_bytes
    for number, size in enumerate(sizes):
        assert sum(brought for name, brought in found if name == str(number)) == size


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (PIECE_BYTES, [PIECE_BYTES]),
        (PIECE_BYTES + REST_BYTES_MAX, [PIECE_BYTES + REST_BYTES_MAX]),
        (PIECE_BYTES + REST_BYTES_MAX + 1, [PIECE_BYTES, REST_BYTES_MAX + 1]),
        (2 * PIECE_BYTES + 1, [PIECE_BYTES, PIECE_BYTES + 1]),
    ],
)
def test_little_that_is_left_costs_no_request_of_its_own(size: int, pieces: list[int]) -> None:
    part = Part("a", DTYPES["U8"], (size,), 0, size, size, 1)
    (region,) = regions(0, [part], page_bytes=1)
    assert [piece.size_bytes for piece in region.pieces] == pieces
