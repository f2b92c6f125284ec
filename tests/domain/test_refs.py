"""What users may write, what comes of it, and that it prints back."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.places import Scheme
from modelcache.domain.refs import FileFilter, Ref, parse_ref
from modelcache.errors import InvalidRef

# Any text that can be encoded, NUL left out: the kernel and S3 know no such names.
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
some = anything.filter(bool)
url_text = st.text(string.ascii_letters + string.digits + "/-._~%!$&'()*+,;=:@é模", max_size=30)
hosts = st.sampled_from(["host", "host:8080", "[::1]", "[::1]:81", "a.example.org", "127.0.0.1"])
globs = st.lists(some, max_size=3).map(tuple)
filters = st.builds(FileFilter, globs, globs)


def options(*names: str) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.dictionaries(st.sampled_from(names), some).map(
        lambda found: tuple(sorted(found.items()))
    )


refs = st.one_of(
    st.builds(
        Ref,
        st.just(Scheme.S3),
        st.from_regex(r"[a-z0-9][a-z0-9.-]{1,40}", fullmatch=True),
        anything,
        options("endpoint", "region", "version-id"),
        filters,
    ),
    st.builds(Ref, st.just(Scheme.FILE), st.just(""), some, options("link"), filters),
    st.builds(
        Ref,
        st.sampled_from([Scheme.HTTP, Scheme.HTTPS]),
        hosts,
        st.one_of(url_text, st.tuples(url_text, url_text).map("?".join)),
        options("index"),
        filters,
    ),
)


@given(refs)
def test_every_ref_prints_to_text_that_parses_back(ref: Ref):
    assert parse_ref(str(ref)) == ref


@given(refs)
def test_text_is_canonical(ref: Ref):
    assert str(parse_ref(str(ref))) == str(ref)


@given(st.text(max_size=60))
def test_any_text_is_a_ref_or_a_usage_error(text: str):
    for candidate in (text, *(f"{scheme}://{text}" for scheme in Scheme)):
        try:
            ref = parse_ref(candidate)
        except InvalidRef:
            continue
        assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "authority", "path"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/a/b/", "bucket", "a/b/"),
        ("s3://bucket/a%20b", "bucket", "a b"),
        ("s3://bucket/a b/é", "bucket", "a b/é"),
        ("S3://bucket/Key", "bucket", "Key"),
        ("https://host/a%20b?x=1&y=2", "host", "a%20b?x=1&y=2"),
        ("https://host?x=1", "host", "?x=1"),
        ("https://host", "host", ""),
        ("http://[::1]:8080/x", "[::1]:8080", "x"),
        ("file:///models/llama", "", "models/llama"),
        ("file://localhost/models", "", "models"),
        ("  s3://bucket/x\n", "bucket", "x"),
        ("gs://bucket/a%20b", "bucket", "a b"),
        ("oci://host:5000/a/b:v1", "host:5000", "a/b:v1"),
        ("hf://org/name@main/sub", "org", "name@main/sub"),
        ("hf://gpt2", "gpt2", ""),
    ],
)
def test_parts_of_a_ref(text: str, authority: str, path: str):
    ref = parse_ref(text)
    assert (ref.authority, ref.path) == (authority, path)


def test_options_and_globs_are_told_apart():
    ref = parse_ref(
        "s3://bucket/p?endpoint=http://minio:9000&include=*.json&include=*.txt&exclude=a%26b&anonymous"
    )
    assert ref.option("endpoint") == "http://minio:9000"
    assert ref.flag("anonymous")
    assert ref.option("region") is None
    assert ref.files == FileFilter(("*.json", "*.txt"), ("a&b",))


def test_options_of_a_url_follow_the_hash_and_stay_here():
    ref = parse_ref("https://host/dir/?token=x#index=1&include=*.json")
    assert ref.path == "dir/?token=x"
    assert ref.flag("index")
    assert ref.files.include == ("*.json",)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "scheme"),
        ("bucket/prefix", "s3://bucket/prefix"),
        ("/models/llama", "file:///models/llama"),
        ("./models", "file:///"),
        ("gopher://x/y", "s3://"),
        ("s3:///prefix", "bucket"),
        ("s3://b", "bucket name"),
        ("s3://bad bucket/x", "bucket name"),
        ("s3://bucket/%ff", "UTF-8"),
        ("s3://bucket/%00", "NUL"),
        ("s3://bucket/x?colour=red", "colour"),
        ("s3://bucket/x?region=a&region=b", "twice"),
        ("s3://bucket/x?region=", "no value"),
        ("s3://bucket/x?include=", "no value"),
        ("s3://bucket/x?include", "no value"),
        ("s3://bucket/x?region=%ff", "UTF-8"),
        ("s3://bucket/\udcff", "Unicode"),
        ("s3://bucket/" + "x" * 9000, "longer"),
        ("file://models/llama", "three slashes"),
        ("file:///", "no path"),
        ("https:///path", "no host"),
        ("https://host:99999/x", "malformed"),
        ("https://[::1/x", "malformed"),
        ("https://host/a b", "%20"),
        ("https://user:hunter2@host/x", "netrc"),
        ("https://host/x#colour=red", "colour"),
    ],
)
def test_bad_refs_say_what_to_write_instead(text: str, hint: str):
    with pytest.raises(InvalidRef, match=None) as caught:
        parse_ref(text)
    assert hint in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/x",
        "https://user:hunter2@host:port/x",
        "https://host:99999/x?token=hunter2",
        "host/x?token=hunter2",
        "gopher://host/x?token=hunter2",
    ],
)
def test_bad_refs_never_repeat_a_secret(text: str):
    with pytest.raises(InvalidRef) as caught:
        parse_ref(text)
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["https://host/x?sig=hunter2#include=*.json", "https://host?sig=hunter2"]
)
def test_redacted_refs_leave_the_query_out(text: str):
    assert "hunter2" not in parse_ref(text).redacted()
    assert parse_ref(text).redacted().startswith("https://host")


def test_origin_is_the_ref_without_its_filter():
    ref = parse_ref("s3://bucket/x?region=r&include=*.json")
    assert str(ref.origin()) == "s3://bucket/x?region=r"
    assert ref.origin().filtered(["*.json"]) == ref


@pytest.mark.parametrize(
    ("include", "exclude", "path", "accepted"),
    [
        ((), (), "a/b.bin", True),
        (("*.json",), (), "config.json", True),
        (("*.json",), (), "deep/down/config.json", True),
        (("*.json",), (), "model.bin", False),
        (("*.json", "*.bin"), (), "model.bin", True),
        (("config.json",), (), "deep/config.json", True),
        (("deep/*.json",), (), "deep/down/config.json", True),
        (("deep/*.json",), (), "config.json", False),
        ((), ("*.bin",), "a/model.bin", False),
        (("*",), ("original/*",), "original/x.pth", False),
        (("*.json",), ("*.json",), "config.json", False),
        (("*.JSON",), (), "config.json", False),
        (("model-0000[12]*",), (), "model-00002-of-3", True),
        (("a?b",), (), "a/b", True),
    ],
)
def test_globs_choose_files(include, exclude, path, accepted):
    assert FileFilter(include, exclude).accepts(path) is accepted


@given(
    st.lists(st.text("ab/*?.", min_size=1, max_size=6), max_size=3),
    st.text("ab./", min_size=1, max_size=6),
    st.text("ab./", min_size=1, max_size=6),
)
def test_a_pruned_directory_holds_no_accepted_file(exclude, directory, below):
    files = FileFilter(exclude=tuple(exclude))
    if files.prunes(directory):
        assert not files.accepts(f"{directory}/{below}")


def test_a_directory_is_pruned_by_the_glob_that_excludes_all_of_it():
    files = FileFilter(exclude=("original/*", ".git*"))
    assert files.prunes("original")
    assert files.prunes(".git")
    assert not files.prunes("weights")
    assert not FileFilter(exclude=("original/*.bin",)).prunes("original")
