"""Uploading a directory through the S3 API, as users' own tools would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import botocore.session
from botocore.config import Config

PART_BYTES = 64 << 20


class S3Server(Protocol):
    """What Minio and RcloneS3 have in common."""

    access_key: str
    secret_key: str
    region: str

    @property
    def url(self) -> str: ...


def s3_client(server: S3Server, ca_file: Path | None = None) -> Any:
    """A botocore client of this server."""
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        verify=str(ca_file) if ca_file else None,
        config=Config(
            s3={"addressing_style": "path"},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            signature_version="s3v4",  # of presigned URLs, too
        ),
    )


def upload_tree(
    server: S3Server,
    bucket: str,
    prefix: str,
    directory: Path,
    *,
    ca_file: Path | None = None,
    checksums: bool = True,
) -> None:
    """Make the bucket and put every file below `directory` under `prefix/`.

    checksums: files get a full-object CRC64NVME, where the server knows those, as S3 itself and
    AWS's newer tools see to.
    """
    client = s3_client(server, ca_file)
    names = {item["Name"] for item in client.list_buckets().get("Buckets", ())}
    if bucket not in names:
        client.create_bucket(Bucket=bucket)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]

    def put(path: Path) -> None:
        key = "/".join(filter(None, (prefix.strip("/"), path.relative_to(directory).as_posix())))
        if path.stat().st_size <= PART_BYTES:
            more = {"ChecksumAlgorithm": "CRC64NVME"} if checksums else {}
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), **more)
        else:
            put_parts(client, bucket, key, path, checksums=checksums)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))


def put_parts(client: Any, bucket: str, key: str, path: Path, *, checksums: bool = True) -> None:
    """A multipart upload; with `checksums` of the full-object kind."""
    more = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} if checksums else {}
    upload = client.create_multipart_upload(Bucket=bucket, Key=key, **more)["UploadId"]
    parts = []
    with path.open("rb") as file:
        number = 0
        while data := file.read(PART_BYTES):
            number += 1
            algorithm = {"ChecksumAlgorithm": "CRC64NVME"} if checksums else {}
            answer = client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data, **algorithm
            )
            part = {"PartNumber": number, "ETag": answer["ETag"]}
            if checksums and "ChecksumCRC64NVME" in answer:
                part["ChecksumCRC64NVME"] = answer["ChecksumCRC64NVME"]
            parts.append(part)
    kind = {"ChecksumType": "FULL_OBJECT"} if checksums else {}
    client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **kind
    )
