"""Buckets on real S3 servers for the tests of `s3://`, and pulls from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import botocore.session

from modelcache.agent import Engine
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.refs import Ref, parse_ref
from modelcache.sources.s3 import S3Source
from tests.agent.support import settings
from tests.servers.faults import Fault, Plan, Request
from tests.servers.minio import Minio
from tests.servers.uploads import S3Server, s3_client

PART_BYTES = 5 << 20  # what S3 wants of every part but the last
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

_numbers = count()
_clients: dict[str, Any] = {}  # making one costs a tenth of a second


def client_of(server: S3Server) -> Any:
    """A botocore client with the server's own credentials, whatever the environment says."""
    if server.url not in _clients:
        _clients[server.url] = s3_client(server)
    return _clients[server.url]


class Bucket:
    """A new bucket; `endpoint` of its refs is the server, unless a proxy is put before it."""

    def __init__(self, server: S3Server, *, versioned: bool = False) -> None:
        self.client = client_of(server)
        self.name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.endpoint = server.url
        self.client.create_bucket(Bucket=self.name)
        if versioned:
            enabled = {"Status": "Enabled"}
            self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration=enabled)

    def put(self, key: str, content: bytes = b"x", **more: Any) -> Any:
        """Upload in one request."""
        return self.client.put_object(Bucket=self.name, Key=key, Body=content, **more)

    def put_parts(
        self, key: str, parts: Iterable[bytes], algorithm: str = "", kind: str = ""
    ) -> None:
        """Upload in parts, with a checksum of the kind FULL_OBJECT or COMPOSITE."""
        named = {"Bucket": self.name, "Key": key}
        kinds = {"ChecksumType": kind} if kind else {}
        hashed = {"ChecksumAlgorithm": algorithm} if algorithm else {}
        upload = self.client.create_multipart_upload(**named, **hashed, **kinds)["UploadId"]
        done = []
        for number, part in enumerate(parts, 1):
            answer = self.client.upload_part(
                **named, UploadId=upload, PartNumber=number, Body=part, **hashed
            )
            wanted = ("ETag", f"Checksum{algorithm}")
            found = {name: answer[name] for name in wanted if name in answer}
            done.append({"PartNumber": number, **found})
        self.client.complete_multipart_upload(
            **named, UploadId=upload, MultipartUpload={"Parts": done}, **kinds
        )

    def ref(self, path: str = "", *, at: str | None = "", **options: str) -> Ref:
        """A ref to a key or prefix. at: another endpoint; None: whatever the environment says."""
        pairs = {name.replace("_", "-"): value for name, value in options.items()}
        if at is not None:
            pairs["endpoint"] = at or self.endpoint
        tail = "&".join(f"{name}={quote(value)}" for name, value in pairs.items())
        return parse_ref(f"s3://{self.name}/{quote(path)}?{tail}")


def session_of(server: Minio, policy: str = "") -> dict[str, str]:
    """Temporary credentials from MinIO's STS, limited by a policy if one is given, as variables."""
    client = botocore.session.Session().create_client(
        "sts",
        endpoint_url=server.url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    role = {"RoleArn": "arn:aws:iam::123456789012:role/any", "RoleSessionName": "tests"}
    limited = {"Policy": policy} if policy else {}
    found = client.assume_role(**role, **limited)["Credentials"]
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    return dict(zip(CREDENTIALS, (found[name] for name in names), strict=True))


def open_s3(ref: Ref, **s3: Any) -> S3Source:
    """A source with quick time limits; s3: fields of S3Settings."""
    chosen = settings(Path("unused"))
    changed = type(chosen.s3)(**s3)
    return S3Source(ref.origin(), changed, chosen.transfer)


def resolve(ref: Ref, **s3: Any) -> Manifest:
    """What a ref names now."""
    return open_s3(ref, **s3).resolve(ref)


def only_file(ref: Ref, **s3: Any) -> tuple[S3Source, File]:
    """The source of a ref to one file, and that file."""
    source = open_s3(ref, **s3)
    (file,) = source.resolve(ref).files
    return source, file


def pull_tree(ref: Ref, store: Path, **transfer: Any) -> dict[str, bytes]:
    """Pull, and read what a reader would see."""
    with Engine(settings(store, **transfer)) as engine:
        path = engine.pull(ref).path
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def nothing_visible(store: Path) -> bool:
    """Whether no reader can see anything in the store."""
    return not any((store / "snapshots").glob("*")) and not any((store / "blobs").rglob("*-*"))


def s3_error(code: str, status: int, message: str = "no", **headers: str) -> Fault:
    """An answer with an error document, as S3 sends it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status=status, body=body.encode(), headers=named)


def first(fault: Fault, times: int, when: Callable[[Request], bool]) -> Plan:
    """The fault for the first `times` requests that `when` chooses."""
    seen = count()

    def plan(request: Request) -> Fault | None:
        return fault if when(request) and next(seen) < times else None

    return plan


def reads(request: Request) -> bool:
    """Whether the request reads an object: not a listing, not a HEAD."""
    return request.method == "GET" and "list-type" not in request.path
