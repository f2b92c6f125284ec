"""`gs://` on an emulator, with objects uploaded by Google's client: what is listed and pulled."""

from __future__ import annotations

import gzip
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.agent import Engine
from modelcache.config import GcsSettings
from modelcache.domain.manifests import Algorithm
from modelcache.domain.ranges import ByteRange
from modelcache.errors import (
    DigestMismatch,
    Forbidden,
    InvalidRef,
    NotFound,
    OriginChanged,
    SourceRefused,
)
from modelcache.sources.gcs import bucket as requests_of
from modelcache.sources.gcs.endpoint import choose_endpoint
from modelcache.transfer.checks import matches
from tests.agent.support import CHUNK_BYTES, random_bytes, settings
from tests.servers.fake_gcs import FakeGcs
from tests.servers.faults import Fault, FaultProxy, Request
from tests.sources.fetching import ask, read
from tests.sources.gcs_buckets import (
    Bucket,
    gs,
    only_file,
    pull_tree,
    resolve,
    settings_with,
)

LARGE = random_bytes(4 * CHUNK_BYTES + 77, 5)
SMALL = {f"part-{number}": b"%d" % number * 100 for number in range(20)}
FILES = {"weights.safetensors": LARGE, **SMALL}


@pytest.fixture
def bucket(fake_gcs: FakeGcs) -> Bucket:
    return Bucket(fake_gcs)


@pytest.fixture
def model(bucket: Bucket) -> Bucket:
    """A model below m/."""
    for name, content in FILES.items():
        bucket.put(f"m/{name}", content)
    return bucket


def paths(manifest):
    return [file.path for file in manifest.files]


# What is listed


def test_the_object_of_a_name_comes_before_what_is_below_it(bucket):
    bucket.put("llama", b"a file")
    bucket.put("llama/config.json", b"{}")
    assert paths(resolve(bucket.ref("llama"))) == ["llama"]
    assert paths(resolve(bucket.ref("llama/"))) == ["config.json"]


def test_an_empty_object_beside_a_prefix_of_its_name_is_a_marker(bucket):
    bucket.put("llama", b"")
    bucket.put("llama/config.json", b"{}")
    assert paths(resolve(bucket.ref("llama"))) == ["config.json"]


def test_directory_markers_are_no_files(bucket):
    for name in ("m/", "m/sub/", "m/sub/config.json"):
        bucket.put(name, b"" if name.endswith("/") else b"{}")
    assert paths(resolve(bucket.ref("m"))) == ["sub/config.json"]


def test_a_whole_bucket_is_a_tree(bucket):
    bucket.put("a/config.json")
    assert paths(resolve(bucket.ref())) == ["a/config.json"]


def test_filters_see_paths_relative_to_the_ref(bucket):
    for name in ("m/a.json", "m/onnx/a.json", "m/b.bin"):
        bucket.put(name)
    ref = bucket.ref("m").filtered(include=["*.json"], exclude=["onnx/*"])
    assert paths(resolve(ref)) == ["a.json"]


def test_more_objects_than_a_page_holds(bucket, monkeypatch):
    monkeypatch.setattr(requests_of, "PAGE_OBJECTS", 30)
    names = [f"m/{number:04}" for number in range(100)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bucket.put, names))
    with FaultProxy(bucket.endpoint) as proxy:
        assert len(resolve(bucket.ref("m/", at=proxy.url)).files) == 100
        assert len(proxy.requests) == 4


def test_a_bucket_is_not_taken_for_a_model(bucket, monkeypatch):
    monkeypatch.setattr(requests_of, "PAGE_OBJECTS", 2)
    monkeypatch.setattr(requests_of, "OBJECTS_MAX", 4)
    for number in range(6):
        bucket.put(f"m/{number}")
    with pytest.raises(SourceRefused, match="over 4 objects; name a model's prefix"):
        resolve(bucket.ref("m/"))


def test_names_that_look_like_syntax_are_read_as_they_are(bucket):
    name = "m/a b+c%2Fd?alt=json&generation=1#x/ü"
    bucket.put(name, b"content")
    source, file = only_file(bucket.ref(name))
    assert file.key == name
    assert read(source, file).body == b"content"


# Generations and checksums


def test_every_object_is_pinned_by_its_generation(bucket):
    generation = bucket.put("a", b"1")
    source, file = only_file(bucket.ref("a"))
    assert file.pin.version == generation
    assert f"generation={generation}" in source.locate(file).path
    assert read(source, file).headers["x-goog-generation"] == generation


def test_a_generation_may_be_named(bucket):
    generation = bucket.put("a", b"1")
    _, file = only_file(bucket.ref("a", generation=generation))
    assert file.pin.version == generation


def test_a_generation_that_is_gone_is_not_found(bucket):
    generation = bucket.put("a", b"1")
    bucket.put("a", b"2")
    with pytest.raises(NotFound, match=f"no generation {generation} of it"):
        resolve(bucket.ref("a", generation=generation))


@pytest.mark.parametrize(("path", "generation"), [("m/", "1"), ("", "1"), ("a", "x"), ("a", "-1")])
def test_a_generation_of_many_objects_is_none(bucket, path, generation):
    with pytest.raises(InvalidRef, match="option 'generation'"):
        resolve(bucket.ref(path, generation=generation))


def test_a_change_of_metadata_alone_makes_no_other_model(bucket):
    bucket.put("a", b"1")
    before = resolve(bucket.ref("a"))
    blob = bucket.bucket.get_blob("a")
    blob.metadata = {"owner": "somebody"}
    blob.patch()
    assert resolve(bucket.ref("a")).model_id == before.model_id


def test_crc32c_and_md5_are_those_of_the_content(bucket):
    bucket.put("a", b"content")
    _, file = only_file(bucket.ref("a"))
    assert [checksum.algorithm for checksum in file.checksums] == [Algorithm.CRC32C, Algorithm.MD5]
    assert all(matches(checksum, memoryview(b"content")) for checksum in file.checksums)


def test_the_hash_header_of_a_part_is_not_believed(bucket):
    bucket.put("a", b"content")
    source, file = only_file(bucket.ref("a"))
    bare = file.__class__(file.path, file.size_bytes, file.key, file.blob, file.pin)
    whole = read(source, bare)
    assert source.checksums(bare, whole.headers) == file.checksums
    assert source.checksums(bare, read(source, bare, ByteRange(0, 3)).headers) == ()
    assert source.checksums(file, whole.headers) == ()


def test_composed_objects_have_no_md5_and_are_verified(bucket, tmp_path):
    for name in ("a", "b"):
        bucket.put(name, LARGE)
    whole = bucket.bucket.blob("whole")
    whole.compose([bucket.bucket.blob("a"), bucket.bucket.blob("b")])
    with Engine(settings(tmp_path)) as engine:
        report = engine.pull(bucket.ref("whole")).report
    assert report.verified == {"crc32c": 2 * len(LARGE)}


def test_the_same_name_at_two_endpoints_is_two_blobs(bucket):
    bucket.put("a", b"1")
    with FaultProxy(bucket.endpoint) as proxy:
        _, here = only_file(bucket.ref("a"))
        _, there = only_file(bucket.ref("a", at=proxy.url))
    assert here.pin == there.pin
    assert here.blob != there.blob


def test_every_way_to_google_is_one_origin():
    identities = {
        choose_endpoint(gs("bucket", **options), GcsSettings()).identity("bucket")
        for options in ({}, {"endpoint": "https://storage-private.p.googleapis.com"})
    }
    assert identities == {"gs://bucket"}


# Objects stored compressed


def test_an_object_that_gcs_would_decompress_is_refused(bucket):
    blob = bucket.bucket.blob("m/config.json")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(b"{}"))
    bucket.put("m/weights")
    with pytest.raises(SourceRefused, match=r"m/config\.json is stored with Content-Encoding gzip"):
        resolve(bucket.ref("m"))
    assert paths(resolve(bucket.ref("m").filtered(exclude=["*.json"]))) == ["weights"]


def test_an_object_that_is_declared_compressed_after_it_was_listed_is_refused(bucket):
    bucket.put("a", gzip.compress(b"content"))
    source, file = only_file(bucket.ref("a"))
    for headers in (
        {"x-goog-stored-content-encoding": "gzip", "x-goog-generation": file.pin.version},
        {"content-encoding": "gzip", "x-goog-generation": file.pin.version},
    ):
        with pytest.raises(SourceRefused, match="Content-Encoding"):
            source.check_pin(file, headers)


def test_nobody_is_asked_to_compress(bucket):
    bucket.put("a", b"content" * 100)
    source, file = only_file(bucket.ref("a"))
    assert ("Accept-Encoding", "identity") in source.locate(file).headers


# Whole pulls


def test_a_model_arrives_and_is_verified(model, tmp_path):
    with Engine(settings(tmp_path)) as engine:
        snapshot = engine.pull(model.ref("m"))
    assert {path.name: path.read_bytes() for path in snapshot.path.iterdir()} == FILES
    assert snapshot.report.verified == {"crc32c": sum(map(len, FILES.values()))}


def test_a_second_pull_reads_nothing(model, tmp_path):
    with FaultProxy(model.endpoint) as proxy:
        ref = model.ref("m", at=proxy.url)
        pull_tree(ref, tmp_path)
        before = len(proxy.requests)
        assert pull_tree(ref, tmp_path) == FILES
        assert not [each for each in proxy.requests[before:] if "alt=media" in each.path]


def test_what_arrived_before_an_interruption_is_kept(model, tmp_path):
    def refuse_the_end(request: Request) -> Fault | None:
        late = request.span is not None and request.span[0] >= 2 * CHUNK_BYTES
        return Fault(status=403) if late else None

    with FaultProxy(model.endpoint) as proxy:
        ref = model.ref("m", at=proxy.url)
        proxy.plan = refuse_the_end
        with pytest.raises(Forbidden):
            # One connection, so that what lies before the refusal is stored when that comes.
            pull_tree(ref, tmp_path, connections_start=1, connections_max=1)
        proxy.plan = lambda _: None
        before = len(proxy.requests)
        assert pull_tree(ref, tmp_path) == FILES
        spans = [request.span for request in proxy.requests[before:] if request.span]
        assert min(span[0] for span in spans) >= CHUNK_BYTES


def test_a_changed_byte_is_a_digest_mismatch(model, tmp_path):
    with FaultProxy(model.endpoint) as proxy:
        proxy.plan = lambda request: Fault(flip_at=1) if request.span else None
        with pytest.raises(DigestMismatch, match=r"weights\.safetensors"):
            pull_tree(model.ref("m", at=proxy.url), tmp_path)


def test_a_damaged_byte_is_fetched_again(model, tmp_path):
    spoilt = []

    def spoil_once(request: Request) -> Fault | None:
        if request.span is None or spoilt:
            return None
        spoilt.append(request)  # two at once are as good as one
        return Fault(flip_at=1)

    with FaultProxy(model.endpoint) as proxy:
        proxy.plan = spoil_once
        assert pull_tree(model.ref("m", at=proxy.url), tmp_path) == FILES
    assert spoilt


def test_trouble_in_passing_is_waited_out(model, tmp_path):
    source = random.Random(4)
    left = [12]

    def plan(_: Request) -> Fault | None:
        if not left[0] or source.random() > 0.5:
            return None
        left[0] -= 1
        return source.choice(
            [Fault(status=503, headers={"Retry-After": "0"}), Fault(status=500), Fault(reset_at=0)]
        )

    with FaultProxy(model.endpoint, plan) as proxy:
        assert pull_tree(model.ref("m", at=proxy.url), tmp_path) == FILES


def test_an_object_replaced_in_mid_pull_ends_it(model, tmp_path):
    replaced = []
    lock = threading.Lock()

    def replace(request: Request) -> Fault | None:
        with lock:
            if request.span is not None and request.span[0] and not replaced:
                replaced.append(model.put("m/weights.safetensors", LARGE[::-1]))
        return None

    with FaultProxy(model.endpoint, replace) as proxy:
        with pytest.raises(OriginChanged, match=r"m/weights\.safetensors was replaced.*pull again"):
            pull_tree(model.ref("m", at=proxy.url), tmp_path)
        assert (
            pull_tree(model.ref("m", at=proxy.url), tmp_path)["weights.safetensors"]
            == (LARGE[::-1])
        )


def test_a_removed_object_is_said_to_be_removed(bucket):
    bucket.put("a", b"1")
    source, file = only_file(bucket.ref("a"))
    bucket.bucket.blob("a").delete()
    with pytest.raises(OriginChanged, match="a was removed since it was listed"):
        read(source, file)


# Endpoints


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_emulators_own_variable_is_obeyed(bucket, monkeypatch, scheme):
    bucket.put("a", b"1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", scheme + bucket.endpoint.removeprefix("http://"))
    source, file = only_file(gs(bucket.name, "a"))
    assert ask(source.locate(file)).body == b"1"


def test_the_configured_endpoint_comes_before_the_environment(bucket, monkeypatch, tmp_path):
    bucket.put("a", b"1")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    gcs = GcsSettings(endpoint=bucket.endpoint, anonymous=True)
    with Engine(settings_with(tmp_path, gcs)) as engine:
        assert (engine.pull(gs(bucket.name, "a")).path / "a").read_bytes() == b"1"


def test_a_proxy_from_the_environment_is_used(bucket, monkeypatch):
    bucket.put("a", b"1")
    with FaultProxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:hunter2@"))
        ref = gs(bucket.name, "a", endpoint="http://gcs.invalid")
        source, file = only_file(ref)
        target = source.locate(file)
        assert ask(target).body == b"1"
    assert "hunter2" not in repr(target)
