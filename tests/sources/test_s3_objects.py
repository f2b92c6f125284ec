"""What lies in a bucket, and what a ref makes of it: keys, versions, markers, changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    Forbidden,
    InvalidRef,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    UnsafePath,
)
from tests.agent.support import CHUNK_BYTES, random_bytes
from tests.servers.faults import FaultProxy, Plan, Request
from tests.servers.minio import Minio
from tests.servers.moto import Moto
from tests.servers.rclone_s3 import RcloneS3
from tests.sources.buckets import (
    Bucket,
    nothing_visible,
    only_file,
    pull_tree,
    resolve,
    s3_error,
)
from tests.sources.fetching import read
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile

ETAG = "an-etag-that-is-no-md5"
LARGE = random_bytes(3 * CHUNK_BYTES + 17, 5)


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """An empty one."""
    return Bucket(minio)


def names(bucket: Bucket, path: str) -> list[str]:
    return [file.path for file in resolve(bucket.ref(path)).files]


# Keys


def test_an_object_and_a_prefix_of_one_name_are_told_apart(moto: Moto):
    bucket = Bucket(moto)  # MinIO keeps keys as files, so it cannot have both
    bucket.put("m", b"the object")
    bucket.put("m/a", b"below")
    bucket.put("mm", b"a neighbour")
    assert names(bucket, "m") == ["m"]
    assert names(bucket, "m/") == ["a"]


def test_an_empty_object_beside_a_prefix_is_its_marker(moto: Moto):
    bucket = Bucket(moto)
    bucket.put("m", b"")
    bucket.put("m/a", b"below")
    assert names(bucket, "m") == ["a"]


def test_an_empty_object_alone_is_an_empty_file(bucket: Bucket, tmp_path: Path):
    bucket.put("m", b"")
    assert pull_tree(bucket.ref("m"), tmp_path) == {"m": b""}


def test_directory_markers_are_not_files(bucket: Bucket, tmp_path: Path):
    bucket.put("m/", b"")
    bucket.put("m/sub/", b"")
    bucket.put("m/sub/a", b"a")
    bucket.put("m/empty", b"")
    assert pull_tree(bucket.ref("m/"), tmp_path) == {"sub/a": b"a", "empty": b""}


def test_a_marker_with_content_cannot_be_a_file(bucket: Bucket):
    bucket.put("m/sub/", b"content")
    with pytest.raises(UnsafePath, match="sub/"):
        resolve(bucket.ref("m/"))


@pytest.mark.parametrize(
    "key",
    [
        "with space",
        "plus+plus",
        "percent%20sign",
        "question?mark",
        "hash#sign",
        "amp&er=sand",
        "ünïcødé 模型",
        "emoji 🦙",
        "quote'\"back`tick",
        "semi;colon,comma",
        "tilde~!*()",
        "<tag>&amp;",
    ],
)
def test_odd_keys_are_signed_and_read_as_they_are(bucket: Bucket, tmp_path: Path, key: str):
    bucket.put(f"m/{key}", key.encode())
    assert pull_tree(bucket.ref("m/"), tmp_path / "a") == {key: key.encode()}
    assert pull_tree(bucket.ref(f"m/{key}"), tmp_path / "b") == {key: key.encode()}


def test_a_key_may_be_as_long_as_s3_allows(bucket: Bucket, tmp_path: Path):
    key = "/".join(["d" * 200] * 4 + ["f" * 200])
    bucket.put(key, b"deep")
    assert pull_tree(bucket.ref("d" * 200 + "/"), tmp_path) == {key[201:]: b"deep"}


# Listings that no server here would let us put. The names come from the network.


def page(objects: list[tuple[str, int]], following: str = "") -> bytes:
    """ListObjectsV2, with url-encoded keys as botocore asks for."""
    items = "".join(
        f"<Contents><Key>{escape(quote(key, safe='/'))}</Key><Size>{size}</Size>"
        f"<ETag>&quot;{ETAG}&quot;</ETag></Contents>"
        for key, size in objects
    )
    more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return (
        f"<ListBucketResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>{more}{items}"
        f"</ListBucketResult>"
    ).encode()


class Listing:
    """Answers for a bucket with these objects, so many keys to a page."""

    def __init__(self, objects: list[tuple[str, int]], page_keys: int = 1000) -> None:
        self.objects = objects
        self.page_keys = page_keys
        self.pages = 0

    def __call__(self, asked: Asked) -> Reply:
        start = int(parse_qs(urlsplit(asked.path).query).get("continuation-token", ["0"])[0])
        end = start + self.page_keys
        self.pages += 1
        following = str(end) if end < len(self.objects) else ""
        return Reply(200, {}, page(self.objects[start:end], following))


def listed(server: ScriptedServer, *keys: str, size_bytes: int = 1) -> list[str]:
    server.answers["/models"] = Listing([(key, size_bytes) for key in keys])
    manifest = resolve(parse_ref(f"s3://models/m/?anonymous&endpoint={server.url('')}"))
    return [file.path for file in manifest.files]


@pytest.mark.parametrize(
    "key",
    [
        "m/../../etc/passwd",
        "m/a/../../../b",
        "m//etc/passwd",
        "m/./a",
        "m/..",
        "m/a/",
        "m/a//b",
        "m/nul\0byte",
        "m/" + "n" * 256,
        "m/" + "/".join(["p" * 200] * 21),
    ],
)
def test_a_key_that_cannot_be_a_safe_file_is_refused(key: str):
    with ScriptedServer() as server, pytest.raises(UnsafePath):
        listed(server, "m/good", key)


def test_names_that_differ_in_case_only_are_refused_together():
    with ScriptedServer() as server, pytest.raises(UnsafePath):
        listed(server, "m/Model.bin", "m/model.bin")


def test_a_file_where_a_directory_is_needed_is_refused():
    with ScriptedServer() as server, pytest.raises(UnsafePath):
        listed(server, "m/a", "m/a/b")


def test_twenty_thousand_keys_are_twenty_pages():
    keys = [f"m/part-{number:05}" for number in range(20_000)]
    with ScriptedServer() as server:
        found = listed(server, *keys)
        answers = server.answers["/models"]
    assert found == sorted(key.removeprefix("m/") for key in keys)
    assert answers.pages == 20  # type: ignore[attr-defined]


def test_a_listing_that_turns_in_circles_is_left():
    with ScriptedServer() as server:
        server.answers["/models"] = lambda _: Reply(200, {}, page([("m/a", 1)], "again"))
        with pytest.raises(SourceUnavailable, match="does not get on"):
            resolve(parse_ref(f"s3://models/m/?anonymous&endpoint={server.url('')}"))


@pytest.mark.parametrize(
    "body",
    [
        b"<ListBucketResult><Contents><Key>m/a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>m/a</Key><Size>x</Size></Contents></ListBucketResult>",
    ],
)
def test_a_listing_that_lacks_what_we_need_is_no_s3(body: bytes):
    with ScriptedServer() as server:
        server.answers["/models"] = lambda _: Reply(200, {}, body)
        with pytest.raises(SourceRefused, match="does not speak S3"):
            resolve(parse_ref(f"s3://models/m/?anonymous&endpoint={server.url('')}"))


# What is not there


@pytest.mark.parametrize("path", ["nothing", "nothing/", ""])
def test_what_matches_nothing_is_not_found(bucket: Bucket, path: str):
    with pytest.raises(NotFound, match=bucket.name):
        resolve(bucket.ref(path))


def test_a_filter_that_accepts_nothing_is_not_found(bucket: Bucket):
    bucket.put("m/a.bin")
    with pytest.raises(NotFound, match="filter accepts"):
        resolve(bucket.ref("m/", include="*.safetensors"))


@pytest.mark.parametrize("path", ["m/", "m"])
def test_a_bucket_that_does_not_exist_is_said(minio: Minio, path: str):
    with pytest.raises(NotFound, match="no such bucket"):
        resolve(parse_ref(f"s3://no-such-bucket-here/{path}?endpoint={minio.url}"))


@pytest.mark.parametrize("path", ["m/", "m"])
def test_a_bucket_that_does_not_exist_is_said_by_rclone_too(rclone_s3: RcloneS3, path: str):
    with pytest.raises(NotFound):
        resolve(parse_ref(f"s3://no-such-bucket-here/{path}?endpoint={rclone_s3.url}"))


@pytest.mark.parametrize("name", ["UPPER", "under_score..dots", "a"])
def test_a_name_that_no_bucket_can_have_is_one_clear_line(minio: Minio, name: str):
    with pytest.raises(ModelcacheError) as caught:
        resolve(parse_ref(f"s3://{name}/m?endpoint={minio.url}"))
    assert isinstance(caught.value, InvalidRef | NotFound)
    assert "\n" not in str(caught.value)


# Versions, and objects that change


def test_a_version_can_be_named(minio: Minio, tmp_path: Path):
    bucket = Bucket(minio, versioned=True)
    old = bucket.put("m/x", b"old")["VersionId"]
    bucket.put("m/x", b"new")
    assert pull_tree(bucket.ref("m/x"), tmp_path) == {"x": b"new"}
    assert pull_tree(bucket.ref("m/x", version_id=old), tmp_path) == {"x": b"old"}


def test_a_deleted_object_is_read_by_its_version_and_not_found_without(minio: Minio):
    bucket = Bucket(minio, versioned=True)
    old = bucket.put("x", b"old")["VersionId"]
    bucket.client.delete_object(Bucket=bucket.name, Key="x")
    assert read(*only_file(bucket.ref("x", version_id=old))).body == b"old"
    with pytest.raises(NotFound):
        resolve(bucket.ref("x"))


def test_a_version_that_does_not_exist_is_said(minio: Minio):
    bucket = Bucket(minio, versioned=True)
    bucket.put("x")
    with pytest.raises(NotFound, match="version"):
        resolve(bucket.ref("x", version_id="8a0f8a0f-0000-0000-0000-000000000000"))


@pytest.mark.parametrize("path", ["m/", ""])
def test_a_version_of_many_objects_is_refused(bucket: Bucket, path: str):
    with pytest.raises(InvalidRef, match="single object"):
        resolve(bucket.ref(path, version_id="1"))


def test_the_version_that_was_listed_is_read_though_a_newer_one_came(minio: Minio, tmp_path: Path):
    """Versions make a change harmless: what was resolved can still be read."""
    bucket = Bucket(minio, versioned=True)
    bucket.put("m/x", LARGE)
    with FaultProxy(minio.url) as proxy:
        proxy.plan = _then(lambda: bucket.put("m/x", LARGE[::-1]))
        assert pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path) == {"x": LARGE}


def test_an_object_that_changes_in_mid_pull_is_an_error_and_never_a_mix(
    bucket: Bucket, minio: Minio, tmp_path: Path
):
    bucket.put("m/x", LARGE)
    with FaultProxy(minio.url) as proxy:
        proxy.plan = _then(lambda: bucket.put("m/x", LARGE[::-1]))
        with pytest.raises(OriginChanged, match="was changed since it was listed; pull again"):
            pull_tree(bucket.ref("m/x", at=proxy.url), tmp_path, connections_start=1)
    assert nothing_visible(tmp_path)
    assert pull_tree(bucket.ref("m/x"), tmp_path) == {"x": LARGE[::-1]}


def test_a_server_that_ignores_if_match_makes_no_mix_either(tmp_path: Path):
    """The answer's ETag is compared as well, before a byte of it counts."""

    class Careless(StaticFile):
        def __call__(self, asked: Asked) -> Reply:
            asked.headers.pop("if-match", None)
            if asked.headers.get("range", "bytes=0-").startswith("bytes=0-"):
                return super().__call__(asked)
            return StaticFile(LARGE[::-1], {"ETag": '"another"'})(asked)

    with ScriptedServer() as server:
        server.answers["/models"] = Listing([("m/x", len(LARGE))])
        server.answers["/models/m/x"] = Careless(LARGE, {"ETag": f'"{ETAG}"'})
        ref = parse_ref(f"s3://models/m/?anonymous&endpoint={server.url('')}")
        with pytest.raises(OriginChanged):
            pull_tree(ref, tmp_path)
    assert nothing_visible(tmp_path)


def test_the_same_content_under_another_etag_counts_as_changed(bucket: Bucket):
    bucket.put("x", b"content")
    (before,) = resolve(bucket.ref("x")).files
    bucket.put_parts("x", [b"content"])
    (after,) = resolve(bucket.ref("x")).files
    assert before.blob != after.blob


def _then(change: Callable[[], object]) -> Plan:
    """Change the object when the second range of it is asked for."""
    numbers = count(1)

    def plan(request: Request) -> None:
        if request.span is not None and next(numbers) == 2:
            change()

    return plan


# Rights


@pytest.mark.usefixtures("minio")  # for its credentials
def test_requester_pays_is_said_with_every_request(tmp_path: Path):
    etag = {"ETag": f'"{ETAG}"'}
    with ScriptedServer() as server:
        server.answers["/models"] = Listing([("m/x", len(LARGE)), ("m/y", 5)])
        server.answers["/models/m/x"] = StaticFile(LARGE, etag)
        server.answers["/models/m/y"] = StaticFile(b"small", etag)
        ref = parse_ref(f"s3://models/m/?requester-pays&endpoint={server.url('')}")
        assert pull_tree(ref, tmp_path) == {"x": LARGE, "y": b"small"}
        asked = server.asked
    assert {each.method for each in asked} == {"GET", "HEAD"}
    assert len(asked) >= 4
    assert {each.headers.get("x-amz-request-payer") for each in asked} == {"requester"}
    for each in asked:
        assert "x-amz-request-payer" in each.headers["authorization"]  # signed, or it is not taken


def test_a_refusal_hints_at_buckets_whose_readers_pay(bucket: Bucket, minio: Minio):
    bucket.put("x")
    with FaultProxy(minio.url) as proxy:
        proxy.plan = lambda _: s3_error("AccessDenied", 403)
        with pytest.raises(Forbidden, match=r"add \?requester-pays"):
            resolve(bucket.ref("x", at=proxy.url))


def test_an_archived_object_is_refused_before_anything_is_fetched(tmp_path: Path):
    with ScriptedServer() as server:
        body = page([("m/x", 5)]).replace(
            b"</Contents>", b"<StorageClass>GLACIER</StorageClass></Contents>"
        )
        server.answers["/models"] = lambda _: Reply(200, {}, body)
        glacier = {"ETag": '"1"', "x-amz-storage-class": "GLACIER"}
        server.answers["/models/m/x"] = lambda _: Reply(200, glacier, b"12345")
        ref = parse_ref(f"s3://models/m/?anonymous&endpoint={server.url('')}")
        with pytest.raises(SourceRefused, match="archived; restore it"):
            pull_tree(ref, tmp_path)
        restored = {**glacier, "x-amz-restore": 'ongoing-request="false", expiry-date="x"'}
        server.answers["/models/m/x"] = lambda _: Reply(200, restored, b"12345")
        assert pull_tree(ref, tmp_path) == {"x": b"12345"}
