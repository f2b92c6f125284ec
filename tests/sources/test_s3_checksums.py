"""The checksums that S3 publishes: which of them are used, and that wrong bytes are noticed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.domain.manifests import Algorithm, File
from modelcache.domain.refs import Ref
from modelcache.errors import DigestMismatch
from modelcache.sources.s3 import checksums
from tests.agent.support import CHUNK_BYTES, random_bytes, settings
from tests.servers.faults import Fault, FaultProxy
from tests.servers.minio import Minio
from tests.servers.rclone_s3 import RcloneS3
from tests.sources.buckets import (
    PART_BYTES,
    Bucket,
    first,
    nothing_visible,
    pull_tree,
    reads,
    resolve,
)

LARGE = random_bytes(3 * CHUNK_BYTES + 17, 6)
PARTS = [random_bytes(PART_BYTES, 7), random_bytes(PART_BYTES, 8), random_bytes(12_345, 9)]
SMALL = b"tokens\n" * 500
EVERY = ["CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1"]


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """An empty one."""
    return Bucket(minio)


def only(ref: Ref) -> File:
    (file,) = resolve(ref).files
    return file


def verified(ref: Ref, store: Path) -> dict[str, int]:
    """Bytes of the pulled files by what vouched for them."""
    with Engine(settings(store)) as engine:
        return dict(engine.pull(ref).report.verified)


# Which checksums there are, on a real server


@pytest.mark.parametrize("algorithm", EVERY)
def test_a_checksum_of_a_whole_object_is_found_and_holds(
    bucket: Bucket, tmp_path: Path, algorithm: str
):
    bucket.put("x", LARGE, ChecksumAlgorithm=algorithm)
    found = only(bucket.ref("x")).checksums
    assert found[0].algorithm == Algorithm(algorithm.lower())
    assert not found[0].parts
    assert pull_tree(bucket.ref("x"), tmp_path) == {"x": LARGE}


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32C", "CRC32"])
def test_a_checksum_of_a_whole_object_in_parts_is_found_and_holds(
    bucket: Bucket, tmp_path: Path, algorithm: str
):
    bucket.put_parts("x", PARTS, algorithm, "FULL_OBJECT")
    found = only(bucket.ref("x")).checksums
    assert found[0].algorithm == Algorithm(algorithm.lower())
    assert not found[0].parts
    assert pull_tree(bucket.ref("x"), tmp_path) == {"x": b"".join(PARTS)}


@pytest.mark.parametrize("algorithm", ["CRC32C", "CRC32", "SHA256", "SHA1"])
def test_a_checksum_of_checksums_is_checked_by_its_parts(
    bucket: Bucket, tmp_path: Path, algorithm: str
):
    bucket.put_parts("x", PARTS, algorithm, "COMPOSITE")
    found = only(bucket.ref("x")).checksums
    assert found[0].algorithm == Algorithm(algorithm.lower())
    assert found[0].parts == tuple(map(len, PARTS))
    assert pull_tree(bucket.ref("x"), tmp_path) == {"x": b"".join(PARTS)}


def test_an_etag_is_an_md5_where_there_is_nothing_better(bucket: Bucket, tmp_path: Path):
    bucket.put("x", LARGE)
    (found,) = only(bucket.ref("x")).checksums
    assert (found.algorithm, found.value) == (Algorithm.MD5, hashlib.md5(LARGE).hexdigest())  # noqa: S324
    assert verified(bucket.ref("x"), tmp_path) == {"md5": len(LARGE)}


def test_what_nothing_vouches_for_is_reported_as_unverified(bucket: Bucket, tmp_path: Path):
    bucket.put_parts("x", PARTS)
    assert only(bucket.ref("x")).checksums == ()
    total = sum(map(len, PARTS))
    assert verified(bucket.ref("x"), tmp_path) == {"none": total}


def test_a_small_object_brings_its_checksum_with_its_bytes(bucket: Bucket, tmp_path: Path):
    """No HEAD is spent on it."""
    bucket.put("m/a", SMALL, ChecksumAlgorithm="CRC32C")
    with FaultProxy(bucket.endpoint) as proxy:
        assert verified(bucket.ref("m/", at=proxy.url), tmp_path) == {"crc32c": len(SMALL)}
        assert [request.method for request in proxy.requests] == ["GET", "GET"]


# Wrong bytes


@pytest.mark.parametrize("algorithm", EVERY)
def test_a_flipped_byte_is_noticed_and_fetched_again(
    bucket: Bucket, minio: Minio, tmp_path: Path, algorithm: str
):
    bucket.put("m/x", LARGE, ChecksumAlgorithm=algorithm)
    with FaultProxy(minio.url) as proxy:
        proxy.plan = first(Fault(flip_at=1234), 1, reads)
        assert pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path) == {"x": LARGE}


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
def test_a_flipped_byte_in_one_part_costs_that_part(
    bucket: Bucket, minio: Minio, tmp_path: Path, algorithm: str
):
    bucket.put_parts("m/x", PARTS, algorithm, "COMPOSITE")
    content = b"".join(PARTS)
    with FaultProxy(minio.url) as proxy:
        proxy.plan = first(
            Fault(flip_at=1234), 1, lambda r: r.span is not None and r.span[0] >= PART_BYTES
        )
        assert pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path) == {"x": content}
        spans = [request.span for request in proxy.gets("x") if request.span]
    fetched = sum(min(end, len(content)) - start for start, end in spans)
    assert len(content) < fetched <= len(content) + 2 * PART_BYTES


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_bytes_that_stay_wrong_are_an_error_and_nothing_is_shown(
    bucket: Bucket, minio: Minio, tmp_path: Path, content: bytes
):
    bucket.put("m/x", content, ChecksumAlgorithm="CRC64NVME")
    with FaultProxy(minio.url) as proxy:
        proxy.plan = lambda request: Fault(flip_at=100) if reads(request) else None
        with pytest.raises(DigestMismatch, match="x does not match the crc64nvme"):
            pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path)
    assert nothing_visible(tmp_path)
    assert pull_tree(bucket.ref("m/x"), tmp_path) == {"x": content}


def test_rclone_vouches_by_its_etags(rclone_s3: RcloneS3, tmp_path: Path):
    bucket = Bucket(rclone_s3)
    bucket.put("m/x", LARGE)
    with FaultProxy(rclone_s3.url) as proxy:
        proxy.plan = first(Fault(flip_at=77), 1, reads)
        assert pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path) == {"x": LARGE}


# What headers mean


def b64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


MD5 = "0123456789abcdef0123456789abcdef"
CRC32C = b64("01020304")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": f'"{MD5}"'}, [("md5", MD5, ())]),
        ({"etag": f'"{MD5}-3"'}, []),
        ({"etag": f'"{MD5}-1"'}, [("md5", MD5, (100,))]),
        ({"etag": '"not-an-md5"'}, []),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, []),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, []),
        (
            {"etag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"},
            [("md5", MD5, ())],
        ),
        (
            {"x-amz-checksum-crc32c": CRC32C, "x-amz-checksum-type": "FULL_OBJECT"},
            [("crc32c", "01020304", ())],
        ),
        ({"x-amz-checksum-crc32c": "AQI="}, []),  # two bytes
        ({"x-amz-checksum-crc32c": "!!!!"}, []),
        ({"etag": f'"{MD5}-3"', "x-amz-checksum-crc32c": CRC32C}, []),  # of which kind?
        ({"x-amz-checksum-crc32c": f"{CRC32C}-4", "x-amz-checksum-type": "COMPOSITE"}, []),
        ({"x-amz-checksum-crc32c": f"{CRC32C}-1"}, [("crc32c", "01020304", (100,))]),
    ],
)
def test_a_header_counts_for_what_it_is(
    headers: dict[str, str], expected: list[tuple[str, str, tuple[int, ...]]]
):
    found = checksums.published(headers, 100)
    assert [(each.algorithm.value, each.value, each.parts) for each in found] == expected


def test_an_empty_object_needs_no_checksum():
    assert checksums.published({"etag": f'"{MD5}"'}, 0) == ()


def test_the_best_of_several_comes_first():
    sha = hashlib.sha256(b"x").hexdigest()
    found = checksums.published(
        {
            "etag": f'"{MD5}"',
            "x-amz-checksum-crc32c": CRC32C,
            "x-amz-checksum-sha256": b64(sha),
        },
        100,
    )
    assert [each.algorithm.value for each in found] == ["sha256", "crc32c", "md5"]
