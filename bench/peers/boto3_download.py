"""boto3's transfer manager: BUCKET PREFIX TARGET."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config

CONCURRENCY = 8
PART_BYTES = 16 << 20


def main() -> None:
    """Download all keys below the prefix, in one transfer manager."""
    bucket, prefix, target = sys.argv[1], sys.argv[2].rstrip("/") + "/", Path(sys.argv[3])
    client = boto3.client(
        "s3", config=Config(max_pool_connections=CONCURRENCY * 2, s3={"addressing_style": "path"})
    )
    settings = TransferConfig(
        max_concurrency=CONCURRENCY,
        multipart_chunksize=PART_BYTES,
        io_chunksize=1 << 20,
        preferred_transfer_client="classic",
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    with create_transfer_manager(client, settings) as manager:
        futures = []
        for page in pages:
            for item in page.get("Contents", ()):
                path = target / item["Key"].removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                futures.append(manager.download(bucket, item["Key"], str(path)))
        for future in futures:
            future.result()


if __name__ == "__main__":
    main()
