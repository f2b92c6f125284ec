"""What every source promises (modelcache/sources/source.py), asked of each over a real origin."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import Manifest
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    CredentialsExpired,
    Forbidden,
    ModelcacheError,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.source import HttpTarget
from modelcache.transfer.checks import matches
from tests.conformance.subjects import SUBJECTS, SourceUnderTest, open_for
from tests.sources.fetching import ask, read

SMALL = b'{"hidden_size": 4096}'
LARGE = random.Random(3).randbytes(BLOCK_BYTES + 12345)  # more than is read in one GET
AWKWARD = [
    "with space.bin",
    "two  spaces",
    "plus+plus",
    "100%",
    "%41%2F",
    "ünïcödé/日本語.json",
    "emoji-😀",
    "quote'and\"double",
    "semi;colon,comma",
    "hash#query?and&equals=",
    "brackets[1]{2}(3)",
    "tilde~dash-dot._",
    "back\\slash",
    "at@colon:dollar$bang!star*",
    "<angle>",
]


@pytest.fixture(params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> SourceUnderTest:
    return SUBJECTS[request.param](request)


@pytest.fixture
def model(subject: SourceUnderTest) -> SourceUnderTest:
    subject.put("config.json", SMALL)
    subject.put("model-00001-of-00002.safetensors", LARGE)
    subject.put("onnx/model.bin", LARGE[::-1])
    subject.put("empty.txt", b"")
    subject.publish()
    return subject


def resolve(ref) -> Manifest:
    return open_for(ref).resolve(ref)


def paths(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def named(manifest: Manifest, path: str):
    return next(file for file in manifest.files if file.path == path)


# What is listed


def test_a_tree_gives_paths_relative_to_it(model):
    manifest = resolve(model.tree())
    assert paths(manifest) == [
        "config.json",
        "empty.txt",
        "model-00001-of-00002.safetensors",
        "onnx/model.bin",
    ]
    assert manifest.size_bytes == len(SMALL) + 2 * len(LARGE)


def test_a_folder_of_a_tree_is_a_tree(model):
    assert paths(resolve(model.tree("onnx"))) == ["model.bin"]


def test_a_folder_is_not_mixed_with_those_whose_names_it_begins(subject):
    for folder in ("llama", "llama2", "llama-chat"):
        subject.put(f"{folder}/config.json", folder.encode())
    subject.publish()
    manifest = resolve(subject.tree("llama"))
    assert [(file.path, file.size_bytes) for file in manifest.files] == [("config.json", 5)]


def test_one_file_is_named_by_its_last_component(model):
    manifest = resolve(model.file("onnx/model.bin"))
    assert [(file.path, file.size_bytes) for file in manifest.files] == [("model.bin", len(LARGE))]


def test_the_filter_chooses_by_relative_path(model):
    ref = model.tree()
    assert paths(resolve(ref.filtered(include=["*.json"]))) == ["config.json"]
    assert "onnx/model.bin" not in paths(resolve(ref.filtered(exclude=["onnx/*"])))


def test_a_filter_that_accepts_nothing_is_an_error(model):
    for ref in (model.tree(), model.file("config.json")):
        with pytest.raises(NotFound):
            resolve(ref.filtered(include=["*.gguf"]))


def test_what_is_not_there_is_not_found(model):
    for ref in (model.tree("absent"), model.file("absent.bin")):
        with pytest.raises(NotFound) as caught:
            resolve(ref)
        assert "absent" in caught.value.message


def test_awkward_names_arrive_as_they_are(subject):
    for name in AWKWARD:
        subject.put(name, name.encode())
    subject.publish()
    ref = subject.tree()
    source = open_for(ref)
    manifest = source.resolve(ref)
    assert set(paths(manifest)) == set(AWKWARD)
    for file in manifest.files:
        assert read(source, file).body == file.path.encode()


def test_a_single_file_may_have_an_awkward_name(subject):
    for name in AWKWARD:
        subject.put(name, name.encode())
    for name in AWKWARD:
        ref = subject.file(name)
        source = open_for(ref)
        (file,) = source.resolve(ref).files
        assert file.path == name.rpartition("/")[2]
        assert read(source, file).body == name.encode()


# Identity


def test_the_same_state_has_the_same_id(model):
    assert resolve(model.tree()).model_id == resolve(model.tree()).model_id


def test_a_changed_file_has_another_blob_and_makes_another_model(model):
    before = resolve(model.tree())
    model.put("config.json", SMALL.upper())
    model.publish()
    after = resolve(model.tree())
    assert named(before, "config.json").blob != named(after, "config.json").blob
    assert named(before, "onnx/model.bin").blob == named(after, "onnx/model.bin").blob
    assert before.model_id != after.model_id


def test_a_stored_manifest_is_enough_to_read_it_later(model):
    manifest = Manifest.from_json(resolve(model.tree()).to_json())
    source = open_for(parse_ref(manifest.origin))
    assert read(source, named(manifest, "config.json")).body == SMALL


# Reading


def test_a_whole_file_arrives(model):
    ref = model.tree()
    source = open_for(ref)
    manifest = source.resolve(ref)
    assert read(source, named(manifest, "config.json")).body == SMALL
    assert read(source, named(manifest, "onnx/model.bin")).body == LARGE[::-1]


@pytest.mark.parametrize("span", [(0, 1), (0, 4096), (4095, 70_001), (len(LARGE) - 1, len(LARGE))])
def test_a_range_arrives(model, span):
    ref = model.tree()
    source = open_for(ref)
    file = named(source.resolve(ref), "model-00001-of-00002.safetensors")
    assert file.ranges
    assert read(source, file, ByteRange(*span)).body == LARGE[slice(*span)]


def test_one_target_serves_many_ranges(model):
    ref = model.tree()
    source = open_for(ref)
    target = source.locate(named(source.resolve(ref), "model-00001-of-00002.safetensors"))
    for start in range(0, 4000, 1000):
        assert ask(target, ByteRange(start, start + 1000)).body == LARGE[start : start + 1000]


def test_locating_afresh_reads_the_same(model):
    ref = model.tree()
    source = open_for(ref)
    file = named(source.resolve(ref), "config.json")
    assert ask(source.locate(file, fresh=True)).body == SMALL


def test_published_checksums_are_those_of_the_content(model):
    ref = model.tree()
    source = open_for(ref)
    manifest = source.resolve(ref)
    for file in manifest.files:
        if not file.size_bytes:
            continue
        answer = read(source, file)
        for checksum in (*file.checksums, *source.checksums(file, answer.headers)):
            assert matches(checksum, memoryview(answer.body)), (file.path, checksum)


def test_many_threads_may_use_one_source(model):
    ref = model.tree()
    source = open_for(ref)
    file = named(source.resolve(ref), "config.json")

    def use(number: int) -> tuple[str, bytes]:
        model_id = source.resolve(ref).model_id if number % 4 == 0 else ""
        return model_id, ask(source.locate(file, fresh=number % 5 == 0)).body

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(use, range(24)))
    assert len({model_id for model_id, _ in results if model_id}) == 1
    assert {body for _, body in results} == {SMALL}


# Change under us


def keeps_what_was_pinned(subject: SourceUnderTest) -> bool:
    """Files named by their content are not replaced; one hash over them tells the rest."""
    return getattr(subject, "content_addressed", False)


def test_a_replaced_file_is_noticed_before_a_byte_is_believed(model):
    if keeps_what_was_pinned(model):
        pytest.skip("what was pinned is not replaced")
    ref = model.tree()
    source = open_for(ref)
    manifest = source.resolve(ref)
    for name, content in (("config.json", SMALL), ("onnx/model.bin", LARGE)):
        model.put(name, bytes(content[:-1]) + b"?")
        with pytest.raises(OriginChanged):
            read(source, named(manifest, name), ByteRange(0, 10))


def test_a_removed_file_is_refused(model):
    ref = model.tree()
    source = open_for(ref)
    file = named(source.resolve(ref), "config.json")
    model.remove("config.json")
    with pytest.raises((NotFound, OriginChanged)):
        read(source, file)


# Refusals


@pytest.fixture
def located(model):
    """A source over HTTP, and a file of it."""
    ref = model.tree()
    source = open_for(ref)
    file = named(source.resolve(ref), "config.json")
    if not isinstance(source.locate(file), HttpTarget):
        pytest.skip("is not read over HTTP")
    return source, file


def test_a_request_for_less_is_throttling_with_its_delay(located):
    source, file = located
    for status in (429, 503):
        error = source.refusal(file, status, {"retry-after": "7"}, b"")
        assert isinstance(error, Throttled)
        assert error.retry_after_s == 7


def test_a_status_without_a_document_still_means_something(located):
    source, file = located
    expected = {
        500: SourceUnavailable,
        502: SourceUnavailable,
        504: SourceUnavailable,
        403: (Forbidden, CredentialsExpired),
        404: NotFound,
        412: OriginChanged,
        418: SourceRefused,
    }
    for status, kind in expected.items():
        error = source.refusal(file, status, {}, b"<html>nothing to say</html>")
        assert isinstance(error, kind), status
        assert isinstance(error, ModelcacheError)
        assert "config.json" in error.message


def test_an_answer_without_the_pinned_validator_is_not_believed(model, located):
    if keeps_what_was_pinned(model):
        pytest.skip("its digest is the only validator")
    source, file = located
    with pytest.raises(OriginChanged):
        source.check_pin(
            file, {"etag": '"another"', "last-modified": "Mon, 02 Jan 2023 10:00:00 GMT"}
        )


def test_a_target_does_not_show_its_secrets(located):
    source, file = located
    target = source.locate(file)
    assert target.good_for_s > 0
    for _, value in target.headers:
        if len(value) > 12 and target.host not in value:
            assert value not in repr(target)
