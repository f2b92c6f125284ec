"""Where a ref is asked for: its mirrors in order, then its own place."""

from __future__ import annotations

import pytest

from modelcache.config import load_settings
from modelcache.domain.mirrors import parse_rewrites, places
from modelcache.domain.refs import parse_ref
from modelcache.errors import InvalidConfig


def asked(ref: str, *lines: str, only: bool = False) -> list[str]:
    return [str(place) for place in places(parse_ref(ref), parse_rewrites(lines), only=only)]


@pytest.mark.parametrize(
    ("line", "ref", "place"),
    [
        ("hf:// => s3://mirror/hf/", "hf://org/name", "s3://mirror/hf/org/name"),
        ("hf:// => s3://mirror/hf/", "hf://org/name@v1/sub", "s3://mirror/hf/org/name@v1/sub"),
        (
            "hf:// => s3://mirror/hf/?endpoint=http://minio:9000",
            "hf://org/name?include=*.json",
            "s3://mirror/hf/org/name?endpoint=http://minio:9000&include=*.json",
        ),
        (
            "oci://docker.io/ => oci://reg.local:5000/hub/?plain-http",
            "oci://docker.io/team/llama:8b?platform=linux/arm64",
            "oci://reg.local:5000/hub/team/llama:8b?plain-http=1&platform=linux/arm64",
        ),
        (
            "hf:// => hf://?endpoint=https://hub.local",
            "hf://org/name?revision=a/b&endpoint=https://other",
            "hf://org/name?endpoint=https://hub.local&revision=a/b",
        ),
        ("s3://models/ => file:///mnt/nfs/", "s3://models/a%20b", "file:///mnt/nfs/a%20b"),
        (
            "s3://models => https://cdn/models#index",
            "s3://models/llama/?region=eu",
            "https://cdn/models/llama/#index=1",
        ),
        ("hf://org/name => gs://bucket/name", "hf://org/name@main", "gs://bucket/name@main"),
    ],
)
def test_the_start_of_a_ref_is_rewritten(line: str, ref: str, place: str):
    assert asked(ref, line) == [place, str(parse_ref(ref))]


@pytest.mark.parametrize(
    ("line", "ref"),
    [
        ("hf://org/name => s3://bucket/x", "hf://org/name-large"),
        ("hf://org/ => s3://bucket/x/", "hf://organisation/name"),
        ("oci://docker.io/ => oci://local/", "hf://org/name"),
        # what the option means cannot be said to the mirror
        ("hf:// => s3://bucket/hf/", "hf://org/name?revision=a/b"),
        ("s3://models/ => file:///mnt/", "s3://models/x?version-id=7"),
        # what comes out is no ref
        ("s3://models/ => oci://local/", "s3://models/Upper"),
    ],
)
def test_a_mirror_that_cannot_mean_the_same_is_not_asked(line: str, ref: str):
    assert asked(ref, line) == [str(parse_ref(ref))]
    assert asked(ref, line, only=True) == [str(parse_ref(ref))]


def test_mirrors_come_in_order_and_the_own_place_last():
    lines = ("hf:// => s3://near/", "hf://org/ => s3://nearer/", "hf:// => file:///far/")
    found = asked("hf://org/name", *lines)
    assert found == [
        "s3://near/org/name",
        "s3://nearer/name",
        "file:///far/org/name",
        "hf://org/name",
    ]
    assert asked("hf://org/name", *lines, only=True) == found[:-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hf:// s3://bucket/", "not of the form"),
        ("hf => s3://bucket/", "not of the form"),
        ("ftp:// => s3://bucket/", "unknown scheme 'ftp'"),
        ("hf:// => ftp://host/", "unknown scheme 'ftp'"),
        ("hf://a?endpoint=x => s3://bucket/", "no options"),
    ],
)
def test_a_line_that_is_no_rewrite_is_named_when_settings_are_read(line: str, words: str):
    with pytest.raises(InvalidConfig, match=words):
        load_settings(environment={"MODELCACHE_MIRRORS_REWRITE": line})


def test_a_table_comes_from_the_environment_line_by_line():
    settings = load_settings(
        environment={
            "MODELCACHE_MIRRORS_REWRITE": "hf:// => s3://a/\n\noci:// => oci://b/",
            "MODELCACHE_MIRRORS_ONLY": "true",
        }
    )
    assert len(parse_rewrites(settings.mirrors.rewrite)) == 2
    assert settings.mirrors.only
