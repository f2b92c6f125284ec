"""The chunk grid covers every blob exactly once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.ranges import ByteRange, ChunkGrid


@given(st.integers(0, 1 << 20), st.integers(1, 1 << 14))
def test_chunks_cover_a_blob_without_gap_or_overlap(size: int, chunk: int):
    grid = ChunkGrid(size, chunk)
    at = 0
    for index in range(min(grid.count, 200)):
        span = grid.span(index)
        assert span.start == at
        assert 0 < span.size_bytes <= chunk
        at = span.end
    if grid.count <= 200:
        assert at == size


def test_an_empty_blob_has_no_chunks():
    assert ChunkGrid(0, 16).count == 0


def test_a_run_of_chunks_ends_with_the_blob():
    grid = ChunkGrid(40, 16)
    assert grid.span(1, 2) == ByteRange(16, 40)
    assert grid.span(0, 3).size_bytes == 40
