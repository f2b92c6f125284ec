"""google-cloud-storage's transfer manager: ENDPOINT BUCKET PREFIX TARGET."""

from __future__ import annotations

import sys
from pathlib import Path

from google.cloud.storage import transfer_manager

from tests.servers.fake_gcs import gcs_client

CHUNK_BYTES = 16 << 20
WORKERS = 8


def main() -> None:
    """Large objects in chunks by several processes, the rest one by one."""
    endpoint, bucket, prefix, target = sys.argv[1:5]
    folder = f"{prefix.rstrip('/')}/"
    for blob in gcs_client(endpoint).list_blobs(bucket, prefix=folder):
        path = Path(target) / blob.name.removeprefix(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if blob.size > CHUNK_BYTES:
            transfer_manager.download_chunks_concurrently(
                blob,
                str(path),
                chunk_size=CHUNK_BYTES,
                max_workers=WORKERS,
                worker_type=transfer_manager.THREAD,
            )
        else:
            blob.download_to_filename(str(path))


if __name__ == "__main__":
    main()
