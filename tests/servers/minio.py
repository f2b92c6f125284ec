"""MinIO: a real S3 server, built by `python -m tests.tools`."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers.certificates import Certificates
from tests.servers.process import Server, find_program


class Minio(Server):
    """One MinIO over a folder of its own."""

    access_key = "modelcachetestkey"
    secret_key = "modelcachetestsecretkey"  # noqa: S105 - of a server that lives for a test
    region = "us-east-1"

    def __init__(
        self, tls: Certificates | None = None, more: Mapping[str, str] | None = None
    ) -> None:
        """more: variables of its own, which configure it."""
        super().__init__()
        self._more = dict(more or {})
        self._program = find_program("minio", "run `python -m tests.tools`")
        self._certificates = self.folder / "certs"
        if tls is not None:
            self.scheme = "https"
            self._certificates.mkdir()
            shutil.copy(tls.cert_file, self._certificates / "public.crt")
            shutil.copy(tls.key_file, self._certificates / "private.key")

    def command(self) -> Sequence[str]:
        address = f"127.0.0.1:{self.port}"
        data = str(self.folder / "data")
        certificates = ["--certs-dir", str(self._certificates)]
        return [self._program, "server", data, "--address", address, "--quiet", *certificates]

    def server_environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_DOMAIN": "localhost",  # buckets as hosts below it, beside those in the path
            "MINIO_CI_CD": "on",
            **self._more,
        }

    def environment(self) -> Mapping[str, str]:
        return s3_environment(self.access_key, self.secret_key, self.region)

    def add_policy(self, name: str, policy: Mapping[str, Any]) -> None:
        """What whoever is given the policy may do, as AWS writes it."""
        url = f"{self.url}/minio/admin/v3/add-canned-policy?{urlencode({'name': name})}"
        request = AWSRequest("PUT", url, data=json.dumps(policy).encode())
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", self.region).add_auth(
            request
        )
        prepared = request.prepare()
        asked = urllib.request.Request(  # noqa: S310 - our own server
            url, data=prepared.body, headers=dict(prepared.headers), method="PUT"
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
            assert answer.status == 200


def s3_environment(access_key: str, secret_key: str, region: str) -> Mapping[str, str]:
    """What AWS clients read, and nothing of this machine's own configuration."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
