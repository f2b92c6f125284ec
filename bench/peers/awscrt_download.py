"""The AWS common runtime's S3 client: BUCKET PREFIX TARGET."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.session
from awscrt.auth import AwsCredentialsProvider
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    DefaultHostResolver,
    EventLoopGroup,
    TlsContextOptions,
)
from awscrt.s3 import (
    S3Client,
    S3RequestTlsMode,
    S3RequestType,
    create_default_s3_signing_config,
)

CONNECTIONS = 8
PART_BYTES = 16 << 20
TARGET_GBPS = 25.0  # more connections and memory than 10, the default


def main() -> None:
    """Download all keys below the prefix; the client writes the files itself."""
    bucket, prefix, target = sys.argv[1], sys.argv[2].rstrip("/") + "/", Path(sys.argv[3])
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    client = _client(tls=endpoint.scheme == "https")
    waiting = []
    for key in _keys(bucket, prefix):
        path = target / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        headers = HttpHeaders([("host", endpoint.netloc)])
        request = HttpRequest("GET", f"/{bucket}/{quote(key)}", headers)
        waiting.append(
            client.make_request(
                type=S3RequestType.GET_OBJECT, request=request, recv_filepath=str(path)
            )
        )
    for each in waiting:
        each.finished_future.result()


def _client(*, tls: bool) -> S3Client:
    group = EventLoopGroup()
    bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
    region = os.environ["AWS_REGION"]
    credentials = AwsCredentialsProvider.new_environment()
    more: dict[str, Any] = {}
    if tls:
        options = TlsContextOptions()
        options.override_default_trust_store_from_path(None, os.environ["AWS_CA_BUNDLE"])
        more["tls_connection_options"] = ClientTlsContext(options).new_connection_options()
    return S3Client(
        bootstrap=bootstrap,
        region=region,
        signing_config=create_default_s3_signing_config(
            region=region, credential_provider=credentials
        ),
        tls_mode=S3RequestTlsMode.ENABLED if tls else S3RequestTlsMode.DISABLED,
        part_size=PART_BYTES,
        throughput_target_gbps=TARGET_GBPS,
        max_active_connections_override=CONNECTIONS,
        **more,
    )


def _keys(bucket: str, prefix: str) -> list[str]:
    client = botocore.session.Session().create_client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


if __name__ == "__main__":
    main()
