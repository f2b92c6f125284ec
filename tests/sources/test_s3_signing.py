"""The short cut to SigV4 makes the very signatures that botocore makes, and S3 takes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from modelcache.domain.manifests import Pin
from modelcache.domain.refs import parse_ref
from modelcache.errors import Forbidden
from modelcache.sources.s3.access import GOOD_FOR_S, SESSION_GOOD_FOR_S, Access
from modelcache.sources.s3.signing import GetSigner, Scope, reproduces, scope_of
from modelcache.sources.source import HttpTarget
from tests.agent.support import settings
from tests.servers.minio import Minio
from tests.servers.process import ServerUnavailable
from tests.sources.buckets import Bucket, only_file, open_s3, resolve, session_of
from tests.sources.fetching import ask, read

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
TOKENS = st.text("ABCabc019+/=", max_size=400)
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
ACCESS_KEYS = SECRETS.filter(lambda key: "," not in key)  # a comma ends it in the header
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31))  # noqa: DTZ001 - a stamp
ETAGS = st.text("0123456789abcdef-", max_size=40)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def botocores(url: str, headers: dict[str, str], credentials: Any, scope: Scope, stamp: str) -> str:
    """The Authorization header that botocore's own signer makes."""
    request = AWSRequest("GET", url, headers=headers)
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    signer = botocore.auth.S3SigV4Auth(credentials, scope.service, scope.region)
    with patch.object(botocore.auth, "get_current_datetime", lambda: moment):
        signer.add_auth(request)
    return str(request.headers["Authorization"])


def unsigned(target: HttpTarget) -> dict[str, str]:
    """A target's headers without what a signer adds."""
    added = {"authorization", "x-amz-date", "x-amz-security-token"}
    return {name: value for name, value in target.headers if name not in added}


@given(
    key=KEYS,
    version=TOKENS,
    token=TOKENS,
    keys=st.tuples(ACCESS_KEYS, SECRETS),
    region=st.from_regex(r"[a-z]{2}-[a-z]{4,9}-[1-9]", fullmatch=True),
    moment=MOMENTS,
)
def test_every_signature_equals_botocores(key, version, token, keys, region, moment):  # noqa: PLR0917
    scope = Scope(region, "s3")
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    path = "/bucket/" + quote(key, safe="/~")
    query = f"versionId={quote(version, safe='-_.~')}" if version else ""
    headers = {"host": "minio:9000", "x-amz-content-sha256": EMPTY, "x-amz-date": stamp}
    if token:
        headers["x-amz-security-token"] = token
    credentials = ReadOnlyCredentials(*keys, token or None)
    signer = GetSigner(credentials, scope)
    mine = signer.authorization(path, query, headers.items(), EMPTY, stamp)
    url = f"http://minio:9000{path}" + (f"?{query}" if query else "")
    sent = {name: value for name, value in headers.items() if name != "x-amz-date"}
    assert mine == botocores(url, sent, credentials, scope, stamp)
    assert reproduces(signer, path, query, {**headers, "authorization": mine})
    assert scope_of(mine) == scope


@pytest.fixture(scope="module")
def access() -> Access:
    ref = parse_ref("s3://bucket/x?endpoint=http://minio:9000&requester-pays=1")
    chosen = settings("unused")  # type: ignore[arg-type]
    names = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t+/="}
    with patch.dict("os.environ", {**names, "AWS_CONFIG_FILE": "/dev/null"}):
        made = Access(ref, chosen.s3, chosen.transfer)
        made.target("x", Pin(), checksum=False)
    return made


@given(key=KEYS, version=TOKENS, etag=ETAGS, checksum=st.booleans())
def test_every_target_is_signed_as_botocore_would_sign_it(access, key, version, etag, checksum):
    pin = Pin(etag=f'"{etag}"' if etag else None, version=version or None)
    target = access.target(key, pin, checksum=checksum)
    assert target.good_for_s == GOOD_FOR_S  # so it was not botocore that signed
    headers = dict(target.headers)
    credentials = Credentials("AKIA", "s", "t+/=")
    url = f"http://minio:9000{target.path}"
    expected = botocores(
        url, unsigned(target), credentials, Scope("us-east-1", "s3"), headers["x-amz-date"]
    )
    assert headers["authorization"] == expected
    prepared, botocore_headers = access._prepared(key, pin, checksum=checksum)
    path = prepared.path + (f"?{prepared.query}" if prepared.query else "")
    assert target.path == path
    changing = {"authorization", "x-amz-date", "user-agent"}
    for name in headers.keys() - changing - {"host"}:
        assert headers[name] == botocore_headers[name]


def test_a_signer_that_differs_from_botocore_is_not_used():
    credentials = ReadOnlyCredentials("AKIA", "secret", None)
    stamp = "20260101T000000Z"
    headers = {"host": "h", "x-amz-content-sha256": EMPTY, "x-amz-date": stamp}
    signer = GetSigner(credentials, Scope("us-east-1", "s3"))
    headers["authorization"] = signer.authorization("/b/k", "", headers.items(), EMPTY, stamp)
    assert reproduces(signer, "/b/k", "", headers)
    assert not reproduces(GetSigner(credentials, Scope("eu-west-1", "s3")), "/b/k", "", headers)
    assert not reproduces(signer, "/b/other", "", headers)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "AWS AKIA:abc",
        "AWS4-ECDSA-P256-SHA256 Credential=AKIA/20260101/s3/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=AKIA/20260101/aws4_request, SignedHeaders=host",
    ],
)
def test_what_is_no_plain_sigv4_is_left_to_botocore(authorization):
    assert scope_of(authorization) is None


def test_a_key_is_derived_anew_when_the_day_changes():
    signer = GetSigner(ReadOnlyCredentials("AKIA", "secret", None), Scope("us-east-1", "s3"))
    headers = [("host", "h")]
    days = ["20260101T235959Z", "20260102T000000Z", "20260101T235959Z"]
    before, after, again = (signer.authorization("/b/k", "", headers, EMPTY, day) for day in days)
    assert before == again != after


# Real servers


class OddUser(Minio):
    """MinIO whose user has keys that a careless signer takes apart or quotes."""

    access_key = "odd/user+key"
    secret_key = "s p/a+c=e ünï~%"  # noqa: S105 - of a server that lives for a test


@pytest.mark.parametrize("key", ["plain", "a b+c%20~*'()", "ünï/日本.bin", "k?x=y&z#", "a//b/../d"])
def test_minio_takes_our_signatures_and_botocores_alike(minio: Minio, key: str):
    bucket = Bucket(minio)
    storable = "//" not in key  # MinIO has no such key, and checks the signature all the same
    etag = bucket.put(key)["ETag"] if storable else None
    fast = open_s3(bucket.ref())._access
    slow = open_s3(bucket.ref())._access
    with patch.object(GetSigner, "authorization", return_value="another"):
        slow.target("learn by this", Pin(), checksum=True)
    assert fast.target(key, Pin(), checksum=True).good_for_s == GOOD_FOR_S
    assert slow.target(key, Pin(), checksum=True).good_for_s == SESSION_GOOD_FOR_S
    answers = [ask(access.target(key, Pin(etag=etag), checksum=True)) for access in (fast, slow)]
    assert [answer.successful for answer in answers] == [storable] * 2
    assert not any(b"Signature" in answer.body for answer in answers)


def test_keys_with_odd_characters_are_signed_right(monkeypatch: pytest.MonkeyPatch):
    try:
        with OddUser() as server:
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            bucket = Bucket(server)
            bucket.put("x", b"content")
            source, file = only_file(bucket.ref("x"))
            assert source.locate(file).good_for_s == GOOD_FOR_S
            assert read(source, file).body == b"content"
    except ServerUnavailable as error:
        pytest.skip(str(error))


def test_a_session_token_is_signed_and_sent(minio: Minio, monkeypatch: pytest.MonkeyPatch):
    bucket = Bucket(minio)
    bucket.put("x", b"content")
    session = session_of(minio)
    for name, value in session.items():
        monkeypatch.setenv(name, value)
    source, file = only_file(bucket.ref("x"))
    target = source.locate(file)
    assert target.good_for_s == GOOD_FOR_S
    assert ("x-amz-security-token", session["AWS_SESSION_TOKEN"]) in target.headers
    assert read(source, file).body == b"content"
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    with pytest.raises(Forbidden):
        resolve(bucket.ref("x"))
