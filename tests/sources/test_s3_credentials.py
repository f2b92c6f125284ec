"""Every way to credentials that boto3 knows leads to a read, and none of them to a leak."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.errors import CredentialsExpired, Forbidden, InvalidConfig, NoCredentials
from tests.servers.faults import FaultProxy
from tests.servers.minio import Minio
from tests.servers.moto import Moto
from tests.sources.buckets import (
    CREDENTIALS,
    Bucket,
    first,
    nothing_visible,
    only_file,
    open_s3,
    pull_tree,
    reads,
    resolve,
    s3_error,
    session_of,
)
from tests.sources.fetching import read
from tests.sources.scripted import Asked, Reply, ScriptedServer

CONTENT = b"weights" * 1000
ROLE = "arn:aws:iam::123456789012:role/reader"
EXPIRED = s3_error("ExpiredToken", 400, "The provided token has expired.")


@pytest.fixture
def bucket(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """One object, and an environment without credentials."""
    made = Bucket(minio)
    made.put("x", CONTENT)
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    return made


def write_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **profiles: Minio) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        "".join(
            f"[{name}]\naws_access_key_id={server.access_key}\n"
            f"aws_secret_access_key={server.secret_key}\n"
            for name, server in profiles.items()
        )
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))


def document(session: dict[str, str]) -> bytes:
    """Credentials as the services of EC2 and ECS hand them out."""
    key, secret, token = (session[name] for name in CREDENTIALS)
    ends = datetime.now(UTC) + timedelta(hours=2)
    return json.dumps(
        {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": token,
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    ).encode()


def test_a_profile_is_named_by_the_environment_the_settings_or_the_ref(
    bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write_profiles(monkeypatch, tmp_path, team=minio)
    with pytest.raises(NoCredentials):
        resolve(bucket.ref("x"))
    assert resolve(bucket.ref("x", profile="team"))
    assert resolve(bucket.ref("x"), profile="team")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert resolve(bucket.ref("x"))


def test_a_profile_that_does_not_exist_is_a_mistake_in_the_question(bucket: Bucket):
    with pytest.raises(InvalidConfig, match="nobody"):
        resolve(bucket.ref("x", profile="nobody"))


def test_no_credentials_are_a_clear_error(bucket: Bucket):
    with pytest.raises(NoCredentials, match="AWS_ACCESS_KEY_ID") as caught:
        resolve(bucket.ref("x"))
    assert caught.value.exit_code == 1


def test_a_wrong_secret_is_forbidden(bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the one")
    with pytest.raises(Forbidden) as caught:
        resolve(bucket.ref("x"))
    assert "not the one" not in str(caught.value)


@pytest.mark.parametrize("option", ["anonymous=1", "anonymous"])
def test_a_public_bucket_is_read_without_a_signature(bucket: Bucket, option: str):
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket.name}", f"arn:aws:s3:::{bucket.name}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps(policy))
    endpoint = quote(bucket.endpoint)
    source, file = only_file(parse_ref(f"s3://{bucket.name}/x?{option}&endpoint={endpoint}"))
    target = source.locate(file)
    assert "authorization" not in dict(target.headers)
    assert read(source, file).body == CONTENT


def test_a_web_identity_becomes_a_session(
    moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bucket = Bucket(moto)  # type: ignore[arg-type]
    bucket.put("x", CONTENT)
    token = tmp_path / "token"
    token.write_text("a web identity")
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    source, file = only_file(bucket.ref("x"))
    headers = dict(source.locate(file).headers)
    assert headers["x-amz-security-token"]
    assert "a web identity" not in str(headers)
    assert read(source, file).body == CONTENT


def test_an_instance_lends_its_role(bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch):
    session = session_of(minio)
    base = "/latest/meta-data/iam/security-credentials/"
    with ScriptedServer() as server:
        server.answers["/latest/api/token"] = lambda asked: Reply(
            200 if asked.method == "PUT" else 405, body=b"metadata-token"
        )
        server.answers[base] = lambda _: Reply(body=b"reader")
        server.answers[f"{base}reader"] = lambda _: Reply(body=document(session))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url())
        source, file = only_file(bucket.ref("x"))
        assert read(source, file).body == CONTENT
        (asked,) = server.asked_for(f"{base}reader")
    assert asked.headers["x-aws-ec2-metadata-token"] == "metadata-token"


class Container:
    """A container's credential service that hands out one session after the other."""

    def __init__(self, *sessions: dict[str, str]) -> None:
        self.left = list(sessions)
        self.asked = 0

    def __call__(self, _: Asked) -> Reply:
        self.asked += 1
        return Reply(body=document(self.left.pop(0) if len(self.left) > 1 else self.left[0]))


def test_expired_credentials_are_renewed_in_mid_pull(
    bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    container = Container(session_of(minio), session_of(minio))
    with ScriptedServer() as server, FaultProxy(minio.url) as proxy:
        server.answers["/credentials"] = container
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url("/credentials"))
        proxy.plan = first(EXPIRED, 1, reads)
        assert pull_tree(bucket.ref("x", at=proxy.url), tmp_path / "store") == {"x": CONTENT}
    assert container.asked == 2


def test_expired_credentials_that_nobody_renews_end_the_pull(
    bucket: Bucket, minio: Minio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    session = session_of(minio)
    for name, value in session.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(minio.url) as proxy:
        proxy.plan = lambda request: EXPIRED if reads(request) else None
        with pytest.raises(Forbidden, match="expired") as caught:
            pull_tree(bucket.ref("x", at=proxy.url), tmp_path / "store")
    assert not any(value in str(caught.value) for value in session.values())
    assert nothing_visible(tmp_path / "store")


def test_a_refusal_for_age_asks_for_new_credentials(bucket: Bucket, minio: Minio, monkeypatch):
    for name, value in session_of(minio).items():
        monkeypatch.setenv(name, value)
    ref = bucket.ref("x")
    source = open_s3(ref)
    (file,) = source.resolve(ref).files
    refused = source.refusal(file, 400, {}, EXPIRED.body)
    assert isinstance(refused, CredentialsExpired)
