"""What KServe's storage URIs mean as refs."""

from __future__ import annotations

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.domain.storage_uris import is_claim, ref_of
from modelcache.errors import UsageError


@pytest.mark.parametrize(
    ("uri", "ref"),
    [
        ("s3://models/llama", "s3://models/llama"),
        ("gs://models/llama/v1", "gs://models/llama/v1"),
        ("hf://org/name", "hf://org/name"),
        ("hf://org/name:abc123", "hf://org/name@abc123"),
        ("hf://org/name@main", "hf://org/name@main"),
        ("oci://registry.test/models/llama:1.0", "oci://registry.test/models/llama:1.0"),
        ("https://host.test/weights.bin?token=x", "https://host.test/weights.bin?token=x"),
        (" s3://models/llama\n", "s3://models/llama"),
    ],
)
def test_it_means_what_kserve_takes_it_for(uri: str, ref: str):
    assert ref_of(uri) == parse_ref(ref)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pvc://claim/folder", "pvc://claim/folder is a claim, which is mounted as it is"),
        ("s3://models/llama.tar.gz", "is an archive, which KServe unpacks"),
        ("https://host.test/model.ZIP?token=hidden", "is an archive"),
        ("https://account.blob.core.windows.net/c/m", "Azure's storage"),
        ("hdfs://name/path", "unknown scheme 'hdfs'"),
        ("file:///models", "nothing that KServe fetches"),
        ("hf://org/name:", "hf://org/name"),
        ("", "no scheme"),
    ],
)
def test_what_it_cannot_mean_is_said(uri: str, words: str):
    with pytest.raises(UsageError) as caught:
        ref_of(uri)
    assert words in caught.value.message
    assert "hidden" not in caught.value.message


def test_claims_are_told_from_the_rest():
    assert is_claim(" pvc://claim")
    assert not is_claim("s3://pvc/claim")
