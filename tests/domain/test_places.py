"""Names in registries and hubs, taken apart; and what is no place at all."""

from __future__ import annotations

import pytest

from modelcache.domain.places import HubName, OciName, hub_name, oci_name
from modelcache.domain.refs import parse_ref
from modelcache.errors import InvalidRef

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("llama", OciName("llama", None, None)),
        ("team/llama:8b-v1.0", OciName("team/llama", "8b-v1.0", None)),
        (f"team/llama@{DIGEST}", OciName("team/llama", None, DIGEST)),
        (f"a/b/c__d:V1@{DIGEST}", OciName("a/b/c__d", "V1", DIGEST)),
    ],
)
def test_an_oci_name_has_repository_tag_and_digest(path: str, name: OciName):
    assert oci_name(path) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://gpt2", HubName("gpt2", None, "")),
        ("hf://gpt2@v1", HubName("gpt2", "v1", "")),
        ("hf://org/name", HubName("org/name", None, "")),
        ("hf://org/name@0123abcd", HubName("org/name", "0123abcd", "")),
        ("hf://org/name@refs/pr/7", HubName("org/name", "refs/pr/7", "")),
        ("hf://org/name@refs/pr/7/sub/f.json", HubName("org/name", "refs/pr/7", "sub/f.json")),
        ("hf://org/name/sub/", HubName("org/name", None, "sub/")),
        ("hf://org/name@main/a@b.txt", HubName("org/name", "main", "a@b.txt")),
    ],
)
def test_a_hub_ref_has_repository_revision_and_path(text: str, name: HubName):
    ref = parse_ref(text)
    assert hub_name(ref.authority, ref.path) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gs://", "no bucket"),
        ("gs://b", "not a valid bucket"),
        ("oci://host", "is not an OCI name"),
        ("oci://host/Name", "lower case"),
        ("oci://host/name:", "is not an OCI name"),
        ("oci://host/name@sha512:00", "is not an OCI name"),
        ("oci://host:port/name", "is not a registry"),
        ("oci://../name", "is not a registry"),
        ("oci://n/ns/b/bucket/o/prefix", "Oracle Object Storage"),
        ("hf://", "is not a repository"),
        ("hf://../name", "is not a repository"),
        ("hf://org/..", "is not a repository"),
        ("hf://org/name@", "is not a repository"),
    ],
)
def test_what_is_no_place_says_how_to_write_one(text: str, words: str):
    with pytest.raises(InvalidRef, match=words):
        parse_ref(text)
