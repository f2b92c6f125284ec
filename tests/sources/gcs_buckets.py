"""Buckets of GCS for the tests of `gs://`, and pulls from them."""

from __future__ import annotations

import json
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from modelcache.agent import Engine
from modelcache.config import GcsSettings, Settings
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.refs import Ref, parse_ref
from modelcache.sources.gcs import GcsSource
from tests.agent.support import settings
from tests.servers.fake_gcs import FakeGcs, gcs_client

_numbers = count()


@cache
def _client(url: str) -> Any:
    return gcs_client(url)


class Bucket:
    """A new bucket on the emulator; `endpoint` of its refs may be a proxy before it."""

    def __init__(self, server: FakeGcs) -> None:
        self.endpoint = server.url
        self.client = _client(server.url)
        self.bucket = self.client.create_bucket(f"bucket-{next(_numbers)}")
        self.name = self.bucket.name

    def put(self, name: str, content: bytes = b"x") -> str:
        """Upload as Google's client does; returns the generation."""
        blob = self.bucket.blob(name)
        blob.upload_from_string(content, checksum="crc32c")
        return str(blob.generation)

    def ref(self, path: str = "", *, at: str = "", **options: str) -> Ref:
        """A ref to an object or prefix. at: another endpoint."""
        return gs(self.name, path, endpoint=at or self.endpoint, **options)


def gs(bucket: str, path: str = "", **options: str) -> Ref:
    """A ref; `_` in the names of options stands for `-`."""
    pairs = {name.replace("_", "-"): value for name, value in options.items()}
    tail = "&".join(f"{name}={quote(value)}" for name, value in pairs.items())
    return parse_ref(f"gs://{bucket}/{quote(path)}" + (f"?{tail}" if tail else ""))


def open_gcs(ref: Ref, **gcs: Any) -> GcsSource:
    """A source with quick time limits; gcs: fields of GcsSettings."""
    return GcsSource(ref.origin(), GcsSettings(**gcs), settings(Path("unused")).transfer)


def resolve(ref: Ref, **gcs: Any) -> Manifest:
    """What a ref names now."""
    return open_gcs(ref, **gcs).resolve(ref)


def only_file(ref: Ref, **gcs: Any) -> tuple[GcsSource, File]:
    """The source of a ref to one file, and that file."""
    source = open_gcs(ref, **gcs)
    (file,) = source.resolve(ref).files
    return source, file


def settings_with(store: Path, gcs: GcsSettings, **transfer: Any) -> Settings:
    """Settings of a pull with these for GCS."""
    chosen = settings(store, **transfer)
    return Settings(store=chosen.store, transfer=chosen.transfer, gcs=gcs)


def pull_tree(
    ref: Ref, store: Path, *, gcs: GcsSettings | None = None, **transfer: Any
) -> dict[str, bytes]:
    """Pull, and read what a reader would see."""
    with Engine(settings_with(store, gcs or GcsSettings(), **transfer)) as engine:
        path = engine.pull(ref).path
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


@cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def service_account(path: Path, token_uri: str) -> Path:
    """A key file as Google hands them out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "1",
                "private_key": _private_key(),
                "client_email": "node@project.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": token_uri,
            }
        )
    )
    return path


def workload_identity(path: Path, token_url: str, subject: Path) -> Path:
    """An external-account file whose subject token lies in a file, as Kubernetes projects one."""
    audience = (
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k"
    )
    path.write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": audience,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": token_url,
                "credential_source": {"file": str(subject)},
            }
        )
    )
    return path
