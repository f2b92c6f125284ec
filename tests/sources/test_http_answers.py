"""Reading responses: validators, digests, sizes, Retry-After, and what refusals mean."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.manifests import Algorithm, Checksum, Pin
from modelcache.errors import (
    Forbidden,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.web import answers

MONDAY = "Mon, 02 Jan 2023 10:00:00 GMT"
TUESDAY = "Tue, 03 Jan 2023 10:00:00 GMT"
SHA256 = hashlib.sha256(b"weights").digest()
BASE64 = base64.b64encode(SHA256).decode()


@pytest.mark.parametrize(
    ("headers", "pin"),
    [
        ({"etag": '"a"'}, Pin(etag='"a"')),
        ({"etag": '"a"', "last-modified": MONDAY}, Pin(etag='"a"')),
        ({"etag": 'W/"a"', "last-modified": MONDAY}, Pin(etag='W/"a"', modified=MONDAY)),
        ({"etag": "unquoted"}, Pin(etag="unquoted")),
        ({"last-modified": MONDAY}, Pin(modified=MONDAY)),
        ({"etag": '"a"\r\nX-Evil: 1', "last-modified": MONDAY}, Pin(modified=MONDAY)),
    ],
)
def test_the_strongest_validator_is_pinned(headers, pin):
    assert answers.pin_of(headers) == pin


@pytest.mark.parametrize("headers", [{}, {"etag": ""}, {"last-modified": "yesterday"}])
def test_without_a_validator_each_resolve_pins_another_state(headers):
    first, second = answers.pin_of(headers), answers.pin_of(headers)
    assert not first.holds
    assert first.nonce != second.nonce


@pytest.mark.parametrize(
    ("pin", "header"),
    [
        (Pin(etag='"a"'), ("If-Match", '"a"')),
        (Pin(etag='W/"a"', modified=MONDAY), ("If-Unmodified-Since", MONDAY)),
        (Pin(etag='W/"a"'), None),
        (Pin(modified=MONDAY), ("If-Unmodified-Since", MONDAY)),
        (Pin(nonce="x"), None),
        (Pin(version="sha256:00"), None),
    ],
)
def test_the_server_is_asked_to_refuse_another_state(pin, header):
    assert answers.condition(pin) == header


PART = {"content-range": "bytes 0-1/7"}


@pytest.mark.parametrize(
    ("pin", "headers", "contradiction"),
    [
        (Pin(etag='"a"'), {"etag": '"a"'}, False),
        (Pin(etag='"a"'), {"etag": '"b"'}, True),
        (Pin(etag='"a"'), {"etag": 'W/"a"'}, False),
        (Pin(etag='W/"a"'), {"etag": 'W/"b"'}, True),
        (Pin(etag='"a"'), {}, False),
        (Pin(etag='"a"'), PART, True),
        (Pin(etag='"a"'), {**PART, "etag": '"a"'}, False),
        (Pin(modified=MONDAY), {"last-modified": MONDAY}, False),
        (Pin(modified=MONDAY), {"last-modified": TUESDAY}, True),
        (Pin(modified=MONDAY), {"last-modified": "Monday, 02-Jan-23 10:00:00 GMT"}, False),
        (Pin(modified=MONDAY), {}, False),
        (Pin(modified=MONDAY), PART, True),
        (Pin(nonce="x"), {"etag": '"b"'}, False),
    ],
)
def test_a_response_of_another_state_is_noticed(pin, headers, contradiction):
    assert answers.contradicts(pin, headers) is contradiction


@pytest.mark.parametrize(
    "headers",
    [
        {"repr-digest": f"sha-256=:{BASE64}:"},
        {"repr-digest": f"sha-512=:AAAA:, sha-256=:{BASE64}:"},
        {"content-digest": f"sha-256=:{BASE64}:"},
        {"digest": f"SHA-256={BASE64}"},
        {"digest": f"unixsum=30637,sha-256={BASE64}"},
        {"x-checksum-sha256": SHA256.hex().upper()},
    ],
)
def test_published_sha256_is_read_in_every_spelling(headers):
    assert answers.published_checksums(headers) == (Checksum(Algorithm.SHA256, SHA256.hex()),)


def test_the_best_published_checksum_comes_first():
    headers = {
        "digest": "md5=" + base64.b64encode(b"m" * 16).decode(),
        "repr-digest": "crc32c=:" + base64.b64encode(b"\0\0\0\7").decode() + ":",
        "x-checksum-sha1": "ab" * 20,
        "x-checksum-sha256": SHA256.hex(),
    }
    found = answers.published_checksums(headers)
    assert [checksum.algorithm for checksum in found] == ["sha256", "crc32c", "sha1", "md5"]
    assert found[1].value == "00000007"


@pytest.mark.parametrize(
    "headers",
    [
        {"digest": "sha-256=AAAA"},
        {"digest": "sha-256=!!"},
        {"repr-digest": "sha-256=:A:"},
        {"x-checksum-sha256": "abc"},
        {"x-checksum-sha256": "z" * 64},
        {"content-digest": f"sha-256=:{BASE64}:", "content-range": "bytes 0-0/7"},
    ],
)
def test_what_is_no_digest_of_the_file_counts_as_not_published(headers):
    assert answers.published_checksums(headers) == ()


@given(st.text(max_size=60))
def test_no_header_text_breaks_a_reader(text):
    names = "digest repr-digest etag last-modified retry-after date content-range content-length"
    headers = dict.fromkeys([*names.split(), "content-encoding", "x-checksum-md5"], text)
    answers.published_checksums(headers)
    answers.pin_of(headers)
    answers.retry_after_s(headers)
    answers.length_of(headers)
    answers.total_of(headers)
    answers.is_encoded(headers)
    answers.contradicts(Pin(modified=MONDAY), headers)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Mon, 02 Jan 2023 10:01:30 GMT", "date": MONDAY}, 90.0),
        ({"retry-after": MONDAY, "date": TUESDAY}, 0.0),
        ({"retry-after": MONDAY}, 0.0),
        ({"retry-after": "9" * 30}, 86_400.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(headers, seconds):
    assert answers.retry_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("headers", "total"),
    [
        ({"content-range": "bytes 0-0/123"}, 123),
        ({"content-range": "bytes */0"}, 0),
        ({"content-range": "bytes 0-0/*"}, None),
        ({"content-range": "lines 0-0/123"}, None),
        ({}, None),
    ],
)
def test_the_total_of_a_content_range(headers, total):
    assert answers.total_of(headers) == total


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (302, SourceRefused, "without Location"),
        (400, SourceRefused, "400"),
        (401, NoCredentials, "netrc"),
        (403, Forbidden, "signed"),
        (404, NotFound, "does not exist"),
        (407, NoCredentials, "proxy"),
        (410, NotFound, "does not exist"),
        (412, OriginChanged, "pull again"),
        (416, OriginChanged, "pull again"),
        (418, SourceRefused, "418"),
        (408, SourceUnavailable, "408"),
        (429, Throttled, "fewer"),
        (500, SourceUnavailable, "500"),
        (501, SourceRefused, "501"),
        (503, Throttled, "fewer"),
        (504, SourceUnavailable, "504"),
    ],
)
def test_a_refusal_is_translated_by_remedy(status, kind, says):
    error = answers.refusal("https://host/x", status, {"retry-after": "3"}, credentials_given=False)
    assert type(error) is kind
    assert says in error.message
    assert "https://host/x" in error.message
    if isinstance(error, SourceUnavailable) and status != 408:
        assert error.retry_after_s == 3.0


def test_refused_credentials_are_not_reported_as_missing():
    error = answers.refusal("https://host/x", 401, {}, credentials_given=True)
    assert type(error) is Forbidden
