"""What must hold before the bytes of an answer are believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.domain.manifests import BlobId, File
from modelcache.domain.ranges import ByteRange
from modelcache.errors import NotFound, OriginChanged, SourceUnavailable
from modelcache.transfer.bodies import LocalBody, check_length

SIZE = 1000
FILE = File("weights", SIZE, "weights", BlobId("origin-1"))
SPAN = ByteRange(100, 200)
ALL = ByteRange(0, SIZE)


def content_range(value: str) -> dict[str, str]:
    return {"content-range": value}


@pytest.mark.parametrize(
    ("span", "headers", "length"),
    [
        (None, {}, SIZE),
        (None, {}, None),  # chunked: the end will tell
        (SPAN, content_range(f"bytes 100-199/{SIZE}"), 100),
        (SPAN, content_range(f" bytes 100-199/{SIZE} "), None),
        (ALL, content_range(f"bytes 0-999/{SIZE}"), SIZE),
        (ALL, {}, SIZE),  # the whole was asked for, and the whole has come
    ],
)
def test_an_answer_that_has_what_was_asked_for(
    span: ByteRange | None, headers: dict[str, str], length: int | None
):
    check_length(FILE, span, headers, length)


@pytest.mark.parametrize(
    ("span", "headers", "length", "error", "message"),
    [
        (None, {}, 999, OriginChanged, "1000 bytes were listed, now it has 999"),
        (None, {}, 0, OriginChanged, "now it has 0"),
        (SPAN, {}, SIZE, SourceUnavailable, "ignored the range"),
        (SPAN, {}, 100, SourceUnavailable, "ignored the range"),  # whose 100 bytes?
        (SPAN, content_range("bytes 0-99/1000"), 100, SourceUnavailable, "was offered"),
        (SPAN, content_range("bytes 100-199/*"), 100, SourceUnavailable, "was offered"),
        (SPAN, content_range("items 100-199/1000"), 100, SourceUnavailable, "was offered"),
        (SPAN, content_range("bytes 100-199/2000"), 100, OriginChanged, "now it has 2000"),
        (SPAN, content_range("bytes 100-199/1000"), 99, SourceUnavailable, "offered 99"),
        (ALL, {}, 999, SourceUnavailable, "offered 999"),
    ],
)
def test_an_answer_that_has_something_else(
    span: ByteRange | None,
    headers: dict[str, str],
    length: int,
    error: type[Exception],
    message: str,
):
    with pytest.raises(error, match=message):
        check_length(FILE, span, headers, length)


def test_a_local_body_is_read_from_its_offset_to_the_end(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    body = LocalBody(path, 4)
    buffer = bytearray(4)
    assert body.read_into(memoryview(buffer)) == 4
    assert buffer == b"4567"
    assert body.read_into(memoryview(buffer)) == 2
    assert buffer[:2] == b"89"
    assert body.read_into(memoryview(buffer)) == 0


def test_a_local_file_that_has_gone_is_not_found(tmp_path: Path):
    with pytest.raises(NotFound, match="cannot be opened"):
        LocalBody(tmp_path / "x", 0)


def test_a_directory_in_the_place_of_a_file_is_an_error(tmp_path: Path):
    body = LocalBody(tmp_path, 0)
    with pytest.raises(SourceUnavailable):
        body.read_into(memoryview(bytearray(1)))
