"""Endpoints, regions, addressing styles and TLS: who is asked, and how it is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from modelcache.domain.manifests import Pin
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    CredentialsExpired,
    InvalidConfig,
    InvalidRef,
    NotFound,
    SourceRefused,
    SourceUnavailable,
)
from modelcache.sources.s3.access import Access
from modelcache.sources.source import HttpTarget
from tests.agent.support import settings
from tests.servers.certificates import Certificates
from tests.servers.faults import FaultProxy
from tests.servers.minio import Minio
from tests.servers.process import ServerUnavailable, free_port
from tests.servers.uploads import s3_client
from tests.sources.buckets import Bucket, only_file, open_s3, pull_tree, resolve
from tests.sources.fetching import ask, read
from tests.sources.scripted import Asked, Reply, ScriptedServer

CONTENT = b"weights" * 1000


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """One object, x."""
    made = Bucket(minio)
    made.put("x", CONTENT)
    return made


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for servers that do not look."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def target_of(text: str, **s3: Any) -> HttpTarget:
    """How a GET of the ref's key would be sent; nothing is."""
    ref = parse_ref(text)
    chosen = settings(Path("unused"))
    access = Access(ref.origin(), type(chosen.s3)(**s3), chosen.transfer)
    return access.target(ref.path, Pin(), checksum=False)


# Which endpoint


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_names_the_endpoint(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.setenv(variable, bucket.endpoint)
    assert read(*only_file(bucket.ref("x", at=None))).body == CONTENT


def test_the_variable_for_s3_comes_before_the_one_for_all(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
    assert read(*only_file(bucket.ref("x", at=None))).body == CONTENT


@pytest.mark.parametrize(
    "lines",
    [
        "[default]\nendpoint_url = {url}\n",
        "[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n",
    ],
)
def test_the_config_file_names_the_endpoint(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str
):
    config = tmp_path / "config"
    config.write_text(lines.format(url=bucket.endpoint))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert read(*only_file(bucket.ref("x", at=None))).body == CONTENT


def test_our_setting_comes_before_the_environment(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    source, file = only_file(bucket.ref("x", at=None), endpoint=bucket.endpoint)
    assert read(source, file).body == CONTENT


def test_the_ref_comes_before_everything(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    source, file = only_file(bucket.ref("x"), endpoint="http://127.0.0.1:2")
    assert read(source, file).body == CONTENT


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "ftp://minio", "http://", "http://minio:0", "x"]
)
def test_an_endpoint_that_is_no_url_is_said(endpoint: str):
    with pytest.raises(InvalidConfig, match="must be a URL"):
        target_of("s3://bucket/x", endpoint=endpoint)


def test_two_endpoints_are_two_origins(bucket: Bucket):
    with FaultProxy(bucket.endpoint) as proxy:
        (one,) = resolve(bucket.ref("x")).files
        (other,) = resolve(bucket.ref("x", at=proxy.url)).files
    assert one.blob != other.blob  # nobody promises that they hold the same


# How the bucket is addressed


def test_aws_buckets_are_hosts_and_their_region_is_in_the_name():
    target = target_of("s3://models/x?region=eu-west-1")
    assert (target.host, target.port, target.tls) == (
        "models.s3.eu-west-1.amazonaws.com",
        443,
        True,
    )
    assert target.path == "/x"


def test_a_bucket_with_dots_stays_in_the_path():
    """No certificate is for `*.*.amazonaws.com`."""
    target = target_of("s3://my.models/x?region=eu-west-1")
    assert target.host == "s3.eu-west-1.amazonaws.com"
    assert target.path == "/my.models/x"


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("s3://models/x?endpoint=http://minio:9000", "minio", "/models/x"),
        ("s3://models/x?endpoint=http://minio:9000&style=virtual", "models.minio", "/x"),
        ("s3://models/x?endpoint=http://minio:9000&style=path", "minio", "/models/x"),
        ("s3://models/x?region=us-west-2&style=path", "s3.us-west-2.amazonaws.com", "/models/x"),
        ("s3://models/x?endpoint=https://gate.example/s3", "gate.example", "/s3/models/x"),
    ],
)
def test_the_style_can_be_chosen(text: str, host: str, path: str):
    target = target_of(text)
    assert (target.host, target.path) == (host, path)


def test_the_style_can_be_set_for_all_refs():
    target = target_of("s3://models/x?endpoint=http://minio:9000", style="virtual")
    assert dict(target.headers)["host"] == "models.minio:9000"


def test_a_style_that_does_not_exist_is_said():
    with pytest.raises(InvalidRef, match="must be path or virtual"):
        target_of("s3://models/x?style=sideways")


def test_path_style_reads_from_a_real_server(bucket: Bucket):
    assert read(*only_file(bucket.ref("x", style="path"))).body == CONTENT


def test_virtual_hosts_read_from_a_real_server(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    at = f"http://localhost:{urlsplit(bucket.endpoint).port}"
    target = target_of(f"s3://{bucket.name}/x?endpoint={at}&style=virtual")
    assert (target.host, target.path) == (f"{bucket.name}.localhost", "/x")
    resolved = _names_of_this_machine(monkeypatch)
    bucket.put("model/b", CONTENT[::-1])
    got = pull_tree(bucket.ref("model/", at=at, style="virtual"), tmp_path)
    assert got == {"b": CONTENT[::-1]}
    assert resolved == {f"{bucket.name}.localhost"}


def _names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Make `*.localhost` this machine, as RFC 6761 says and not every resolver knows."""
    asked = set()
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        asked.add(host)
        return original("127.0.0.1" if host.endswith(".localhost") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


# Regions


def test_the_region_of_the_signature_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch):
    def scope(text: str, **s3: object) -> str:
        return dict(target_of(text, **s3).headers)["authorization"].split("/")[2]

    at = "s3://models/x?endpoint=http://minio:9000"
    assert scope(at) == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    assert scope(at) == "eu-south-1"
    assert scope(at, region="eu-north-1") == "eu-north-1"
    assert scope(f"{at}&region=sa-east-1", region="eu-north-1") == "sa-east-1"


class Regional:
    """S3's answers for a bucket of another region: an error, which names the right one."""

    def __init__(self, region: str, content: bytes, *, names_it: bool = True) -> None:
        self.region = region
        self.content = content
        self.names_it = names_it
        self.seen: list[str] = []

    def __call__(self, asked: Asked) -> Reply:
        authorization = asked.headers.get("authorization", "")
        region = authorization.split("/")[2] if authorization else ""
        self.seen.append(region)
        headers = {"x-amz-bucket-region": self.region} if self.names_it else {}
        if region != self.region:
            place = f"<Region>{self.region}</Region>" if self.names_it else ""
            body = f"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message>{place}"
            return Reply(400, headers, f"{body}</Error>".encode())
        if "list-type" in parse_qs(urlsplit(asked.path).query):
            return Reply(200, headers, listing([("m/x", len(self.content))]))
        return Reply(200, {**headers, "ETag": '"1"'}, self.content)


def listing(objects: list[tuple[str, int]]) -> bytes:
    items = "".join(
        f'<Contents><Key>{key}</Key><Size>{size}</Size><ETag>"1"</ETag></Contents>'
        for key, size in objects
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


def test_a_bucket_in_another_region_is_found_there():
    server_answers = Regional("eu-central-1", CONTENT)
    with ScriptedServer() as server:
        server.answers["/models"] = server.answers["/models/m/x"] = server_answers
        source, file = only_file(parse_ref(f"s3://models/m/?endpoint={server.url('')}"))
        assert read(source, file).body == CONTENT
    assert server_answers.seen[0] == "us-east-1"
    assert server_answers.seen[-1] == "eu-central-1"  # the read needed no second detour
    assert server_answers.seen.count("us-east-1") == 1


def test_a_stored_manifest_is_read_from_the_right_region_too():
    """With nothing to resolve, the region is learnt from the refusal of a read."""
    answers = Regional("eu-central-1", CONTENT)
    with ScriptedServer() as server:
        server.answers["/models"] = server.answers["/models/m/x"] = answers
        ref = parse_ref(f"s3://models/m/?endpoint={server.url('')}")
        _, file = only_file(ref)
        fresh = open_s3(ref)
        with pytest.raises(CredentialsExpired, match="another region"):
            read(fresh, file)
        assert ask(fresh.locate(file, fresh=True)).body == CONTENT


def test_a_region_that_is_not_told_is_asked_of_the_user():
    with ScriptedServer() as server:
        server.answers["/models"] = Regional("eu-central-1", CONTENT, names_it=False)
        with pytest.raises(SourceRefused, match=r"\?region=NAME"):
            resolve(parse_ref(f"s3://models/m/?endpoint={server.url('')}"))


# TLS


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[Minio]:
    """MinIO behind a certificate of our own authority."""
    try:
        with Minio(certificates) as server:
            s3 = s3_client(server, certificates.ca_file)
            s3.create_bucket(Bucket="models")
            s3.put_object(Bucket="models", Key="m/x", Body=CONTENT)
            yield server
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def tls_ref(tls_server: Minio, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one object there."""
    for name, value in tls_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://models/m/?endpoint={tls_server.url}"


def test_an_authority_of_ones_own_is_a_setting(tls_ref: str, certificates: Certificates):
    source, file = only_file(parse_ref(tls_ref), ca_file=str(certificates.ca_file))
    assert read(source, file).body == CONTENT


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_ones_own_is_a_variable(
    tls_ref: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    tmp_path: Path,
):
    monkeypatch.setenv(variable, str(certificates.ca_file))
    assert pull_tree(parse_ref(tls_ref), tmp_path) == {"x": CONTENT}


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_ref: str):
    with pytest.raises(SourceRefused, match=r"certificate of .* is not trusted.*s3\.ca_file"):
        resolve(parse_ref(tls_ref))


def test_the_bytes_trust_nobody_either(tls_ref: str, certificates: Certificates):
    """A manifest that is known already must not open a way round the check."""
    ref = parse_ref(tls_ref)
    _, file = only_file(ref, ca_file=str(certificates.ca_file))
    with pytest.raises(SourceRefused, match="not trusted"):
        read(open_s3(ref), file)


def test_a_certificate_for_another_host_is_refused(
    tls_ref: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    _names_of_this_machine(monkeypatch)
    ref = parse_ref(tls_ref.replace("127.0.0.1", "other.localhost"))
    with pytest.raises(SourceRefused, match="is for another host"):
        resolve(ref, ca_file=str(certificates.ca_file))


def test_plain_http_on_a_tls_port_is_said(tls_ref: str):
    with pytest.raises(SourceUnavailable, match=r"hung up.*https"):
        resolve(parse_ref(tls_ref.replace("https:", "http:")))


def test_tls_on_a_plain_port_is_said(bucket: Bucket):
    with pytest.raises(SourceRefused, match="does not speak TLS"):
        resolve(bucket.ref("x", at=bucket.endpoint.replace("http:", "https:")))


# Nobody there, or somebody else


def test_a_host_that_does_not_exist_is_said():
    with pytest.raises(NotFound, match=r"there is no host nowhere\.invalid"):
        resolve(parse_ref("s3://models/x?endpoint=http://nowhere.invalid:9000"))


def test_a_port_that_nobody_listens_on_is_said():
    with pytest.raises(SourceUnavailable, match=r"cannot connect to 127\.0\.0\.1:.*refused"):
        resolve(parse_ref(f"s3://models/x?endpoint=http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>a console</html>"),
        Reply(200, {}, b"<html></html>"),
        Reply(404, {}, b"no such page"),
        Reply(200, {}, b'<!DOCTYPE x [<!ENTITY a "aa">]><ListBucketResult>&a;</ListBucketResult>'),
    ],
    ids=["console", "html", "404", "entities"],
)
def test_what_speaks_no_s3_is_said(reply: Reply):
    with ScriptedServer() as server:
        server.answers["/models"] = lambda _: reply
        with pytest.raises(SourceRefused, match="does not speak S3"):
            resolve(parse_ref(f"s3://models/m/?endpoint={server.url('')}"))
