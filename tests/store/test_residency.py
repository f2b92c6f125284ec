from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.store import residency
from modelcache.store.residency import resident_bytes, resident_file_bytes

SIZE = (1 << 20) + 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    return path


def make_cold(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("way", ["_by_cachestat", "_by_mincore"])
def test_both_ways_count_the_pages_that_are_there(file: Path, way: str) -> None:
    count = getattr(residency, way)
    fd = os.open(file, os.O_RDONLY)
    try:
        assert count(fd, 0, SIZE) in {None, 257}
        make_cold(file)
        if count(fd, 0, SIZE):
            pytest.skip("this filesystem's files do not leave the page cache")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, 1, 8192)
        assert count(fd, 0, SIZE) in {None, 1}
        assert count(fd, 8192, 8193) in {None, 1}
        assert count(fd, 0, 4096) in {None, 0}
    finally:
        os.close(fd)


def test_what_is_told_is_never_more_than_what_was_asked_about(file: Path) -> None:
    assert resident_file_bytes(file) == SIZE
    with file.open("rb") as opened:
        assert resident_bytes(opened.fileno(), 10, 20) == 10
        assert resident_bytes(opened.fileno(), 10, 10) == 0


def test_a_kernel_without_the_call_is_asked_page_by_page(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_CACHESTAT", 100_000)  # ENOSYS
    assert resident_file_bytes(file) == SIZE


def test_a_file_that_is_not_there_has_no_answer(tmp_path: Path) -> None:
    assert resident_file_bytes(tmp_path / "nothing") is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        resident_bytes(999_999, 0, 10)
