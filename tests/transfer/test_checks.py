"""Checksums over blobs that arrive in any order, against the plain ones of the standard library."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from awscrt import checksums as crt
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import Algorithm, BlobId, Checksum, File
from modelcache.store import BlobWriter, WriteMode
from modelcache.transfer.buffers import Block, BufferPool
from modelcache.transfer.checks import (
    MD5_BYTES_MAX,
    BlobCheck,
    CombinedCheck,
    InOrderCheck,
    PartsCheck,
    UncheckedBlob,
    best_checksum,
    check_for,
    matches,
)
from tests.store.support import open_store, random_bytes

CHUNK = 2 * BLOCK_BYTES
CRCS = (Algorithm.CRC64NVME, Algorithm.CRC32C, Algorithm.CRC32)
HASHES = (Algorithm.SHA256, Algorithm.SHA1, Algorithm.GIT_SHA1, Algorithm.MD5)
BLOB = BlobId("origin-1")
MANY = examples(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def value_of(algorithm: Algorithm, data: bytes) -> bytes:
    match algorithm:
        case Algorithm.CRC64NVME:
            return int(crt.crc64nvme(data)).to_bytes(8)
        case Algorithm.CRC32C:
            return int(crt.crc32c(data)).to_bytes(4)
        case Algorithm.CRC32:
            return zlib.crc32(data).to_bytes(4)
        case Algorithm.GIT_SHA1:
            return hashlib.sha1(
                b"blob %d\x00%s" % (len(data), data), usedforsecurity=False
            ).digest()
        case _:
            return hashlib.new(algorithm.value, data).digest()


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    parts, start = [], 0
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    return parts


def whole(algorithm: Algorithm, data: bytes) -> Checksum:
    return Checksum(algorithm, value_of(algorithm, data).hex())


def composite(
    algorithm: Algorithm, data: bytes, sizes: Sequence[int], *, listed: bool = True
) -> Checksum:
    """As S3 makes it; listed: with the values of the parts."""
    values = [value_of(algorithm, part) for part in cut(data, sizes)]
    found = tuple(value.hex() for value in values) if listed else ()
    return Checksum(algorithm, value_of(algorithm, b"".join(values)).hex(), tuple(sizes), found)


@contextmanager
def arriving(data: bytes, chunk_bytes: int = CHUNK) -> Iterator[BlobWriter]:
    """A writer of a fresh store for these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "store", chunk_bytes=chunk_bytes)
        writer = store.writer(BLOB, len(data), mode=WriteMode.BUFFERED)
        try:
            yield writer
        finally:
            writer.close()


def check_of(checksum: Checksum, writer: BlobWriter, pool: BufferPool) -> BlobCheck:
    file = File("x", writer.grid.size_bytes, "x", BLOB, checksums=(checksum,))
    return check_for(file, writer, pool, verify_md5=True)


def store_chunk(
    check: BlobCheck, writer: BlobWriter, pool: BufferPool, data: bytes, chunk: int
) -> None:
    """As a worker does it: block by block, keeping what an in-order hash wants to see."""
    span = writer.grid.span(chunk)
    hashed = check.hasher(chunk)
    kept: list[Block] = []
    for start in range(span.start, span.end, BLOCK_BYTES):
        part = data[start : min(start + BLOCK_BYTES, span.end)]
        block = pool.take()
        block.view[: len(part)] = part
        hashed.update(block.view[: len(part)])
        writer.write(start, block.view, len(part))
        kept.append(block)
        if not check.in_order:
            while kept:
                kept.pop().release()
    writer.finish_chunk(chunk, hashed.xxh3, hashed.crc)
    check.stored(chunk, hashed, kept)


def arrive(
    checksum: Checksum, data: bytes, order: Sequence[int] | None = None, blocks: int = 16
) -> list[int] | None:
    """What the check says when `data` has arrived in this order of chunks."""
    pool = BufferPool(blocks * BLOCK_BYTES)
    with arriving(data) as writer:
        check = check_of(checksum, writer, pool)
        for chunk in order or range(writer.grid.count):
            store_chunk(check, writer, pool, data, chunk)
        found = check.bad_chunks(writer)
        assert pool.free == pool.blocks  # every block has come back
        return found


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DATA = random_bytes(7 * CHUNK // 2 + 12_345, 3)
CHUNKS = -(-len(DATA) // CHUNK)


@MANY
@given(
    algorithm=st.sampled_from([*CRCS, *HASHES]),
    order=st.permutations(range(CHUNKS)),
    blocks=st.sampled_from([8, 16, 64]),
)
def test_a_sound_blob_passes_in_whatever_order_it_comes(
    algorithm: Algorithm, order: list[int], blocks: int
):
    assert arrive(whole(algorithm, DATA), DATA, order, blocks) is None


@MANY
@given(
    algorithm=st.sampled_from([*CRCS, *HASHES]),
    order=st.permutations(range(CHUNKS)),
    at=st.integers(0, len(DATA) - 1),
)
def test_one_wrong_bit_anywhere_is_noticed(algorithm: Algorithm, order: list[int], at: int):
    found = arrive(whole(algorithm, DATA), damaged(DATA, at), order)
    assert found == list(range(CHUNKS))  # any of them may have it


@st.composite
def part_sizes(draw: st.DrawFn) -> list[int]:
    """Where parts end: anywhere, and where blocks and chunks do, which is the common case."""
    edges = [*range(BLOCK_BYTES, len(DATA), BLOCK_BYTES)]
    anywhere = st.integers(1, len(DATA) - 1)
    ends = draw(st.lists(st.one_of(anywhere, st.sampled_from(edges)), max_size=6, unique=True))
    ends = [0, *sorted(ends), len(DATA)]
    return [b - a for a, b in pairwise(ends)]


@MANY
@given(
    algorithm=st.sampled_from([Algorithm.CRC32C, Algorithm.CRC32, Algorithm.SHA256]),
    order=st.permutations(range(CHUNKS)),
    sizes=part_sizes(),
    listed=st.booleans(),
)
def test_a_sound_blob_of_parts_passes_wherever_they_end(
    algorithm: Algorithm, order: list[int], sizes: list[int], listed: bool
):
    checksum = composite(algorithm, DATA, sizes, listed=listed)
    assert arrive(checksum, DATA, order) is None


@MANY
@given(
    algorithm=st.sampled_from([Algorithm.CRC32C, Algorithm.SHA1]),
    sizes=part_sizes(),
    at=st.integers(0, len(DATA) - 1),
)
def test_only_the_chunks_of_a_wrong_part_are_in_doubt(
    algorithm: Algorithm, sizes: list[int], at: int
):
    found = arrive(composite(algorithm, DATA, sizes), damaged(DATA, at))
    start = 0
    for size in sizes:
        if start <= at < start + size:
            break
        start += size
    assert found == list(range(start // CHUNK, -(-(start + size) // CHUNK)))


@pytest.mark.parametrize("algorithm", [Algorithm.CRC32C, Algorithm.SHA256])
def test_all_chunks_are_in_doubt_where_the_parts_are_not_listed(algorithm: Algorithm):
    checksum = composite(algorithm, DATA, [CHUNK, len(DATA) - CHUNK], listed=False)
    assert arrive(checksum, damaged(DATA, 5)) == list(range(CHUNKS))


@pytest.mark.parametrize("algorithm", [Algorithm.CRC32C, Algorithm.SHA256])
def test_an_empty_last_part_is_a_part(algorithm: Algorithm):
    assert arrive(composite(algorithm, DATA, [len(DATA), 0]), DATA) is None


@pytest.mark.parametrize("algorithm", [*CRCS, *HASHES])
@pytest.mark.parametrize("parts", [False, True])
def test_what_is_fetched_again_makes_it_whole(algorithm: Algorithm, parts: bool):
    """The check starts over for the chunks that were lost."""
    sizes = [CHUNK + 5, len(DATA) - CHUNK - 5]
    checksum = composite(algorithm, DATA, sizes) if parts else whole(algorithm, DATA)
    pool = BufferPool(16 * BLOCK_BYTES)
    with arriving(DATA) as writer:
        check = check_of(checksum, writer, pool)
        for chunk in range(CHUNKS):
            store_chunk(check, writer, pool, damaged(DATA, 2 * CHUNK + 7), chunk)
        bad = check.bad_chunks(writer)
        assert bad
        assert 2 in bad
        writer.forget_chunks(bad)
        for chunk in reversed(bad):
            store_chunk(check, writer, pool, DATA, chunk)
        assert check.bad_chunks(writer) is None


@pytest.mark.parametrize("algorithm", [*CRCS, *HASHES])
@pytest.mark.parametrize("parts", [False, True])
def test_chunks_of_an_earlier_pull_are_read_back(tmp_path: Path, algorithm: Algorithm, parts: bool):
    """They may have been stored by a pull that knew of no checksum."""
    sizes = [CHUNK - 5, len(DATA) - CHUNK + 5]
    checksum = composite(algorithm, DATA, sizes) if parts else whole(algorithm, DATA)
    store = open_store(tmp_path / "store", chunk_bytes=CHUNK)
    pool = BufferPool(16 * BLOCK_BYTES)
    earlier = store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED)
    for chunk in (0, 3):
        store_chunk(UncheckedBlob(earlier.grid), earlier, pool, DATA, chunk)
    earlier.close()
    writer = store.writer(BLOB, len(DATA), mode=WriteMode.BUFFERED)
    assert writer.done == {0, 3}
    check = check_of(checksum, writer, pool)
    for chunk in (2, 1):
        store_chunk(check, writer, pool, DATA, chunk)
    assert check.bad_chunks(writer) is None
    writer.close()


def test_blocks_beyond_the_frontier_leave_most_of_the_pool_free():
    """An in-order hash must not starve the connections of memory."""
    pool = BufferPool(16 * BLOCK_BYTES)
    data = random_bytes(16 * CHUNK, 4)
    with arriving(data) as writer:
        check = check_of(whole(Algorithm.SHA256, data), writer, pool)
        for chunk in reversed(range(writer.grid.count)):
            store_chunk(check, writer, pool, data, chunk)
            assert pool.free >= pool.blocks // 4 - CHUNK // BLOCK_BYTES
        assert check.bad_chunks(writer) is None
        assert pool.free == pool.blocks


@pytest.mark.parametrize("size", [1, 4095, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("algorithm", [Algorithm.CRC64NVME, Algorithm.SHA256])
def test_blobs_of_every_awkward_size(algorithm: Algorithm, size: int):
    data = random_bytes(size, 5)
    assert arrive(whole(algorithm, data), data) is None
    assert arrive(whole(algorithm, data), damaged(data, size - 1)) is not None


# Which check


def file_of(*checksums: Checksum, size_bytes: int = len(DATA)) -> File:
    return File("x", size_bytes, "x", BLOB, checksums=checksums)


def test_the_first_published_checksum_is_taken():
    first, second = whole(Algorithm.CRC32C, DATA), whole(Algorithm.SHA256, DATA)
    assert best_checksum(file_of(first, second), verify_md5=True) == first


def test_parts_that_do_not_make_the_blob_are_passed_over():
    wrong = composite(Algorithm.CRC32C, DATA, [100, 200])
    good = whole(Algorithm.SHA1, DATA)
    assert best_checksum(file_of(wrong, good), verify_md5=True) == good
    assert best_checksum(file_of(wrong), verify_md5=True) is None


def test_an_md5_of_a_large_blob_is_checked_only_when_asked_for():
    md5 = whole(Algorithm.MD5, b"")
    large, small = MD5_BYTES_MAX + 1, MD5_BYTES_MAX
    assert best_checksum(file_of(md5, size_bytes=large), verify_md5=False) is None
    assert best_checksum(file_of(md5, size_bytes=large), verify_md5=True) == md5
    assert best_checksum(file_of(md5, size_bytes=small), verify_md5=False) == md5


@pytest.mark.parametrize(
    ("checksum", "kind", "name"),
    [
        (None, UncheckedBlob, None),
        (whole(Algorithm.CRC32C, DATA), CombinedCheck, "crc32c"),
        (composite(Algorithm.CRC32C, DATA, [len(DATA)]), PartsCheck, "crc32c-parts"),
        (whole(Algorithm.SHA256, DATA), InOrderCheck, "sha256"),
        (composite(Algorithm.SHA256, DATA, [len(DATA)]), InOrderCheck, "sha256-parts"),
    ],
)
def test_each_kind_has_its_check(checksum: Checksum | None, kind: type, name: str | None):
    with arriving(DATA) as writer:
        file = file_of(*([checksum] if checksum else []))
        check = check_for(file, writer, BufferPool(0), verify_md5=False)
        assert isinstance(check, kind)
        assert check.name == name


@pytest.mark.parametrize("algorithm", [*CRCS, *HASHES])
def test_a_blob_in_memory_is_compared_with_either_kind(algorithm: Algorithm):
    data = random_bytes(5000, 6)
    for checksum in (whole(algorithm, data), composite(algorithm, data, [1000, 3000, 1000])):
        assert matches(checksum, memoryview(data))
        assert not matches(checksum, memoryview(damaged(data, 4999)))
        assert not matches(checksum, memoryview(data[:-1]))
