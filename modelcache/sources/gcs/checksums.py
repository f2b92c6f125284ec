"""The checksums that GCS publishes: CRC32C of every object, MD5 of those uploaded in one piece.

Both are of the whole object. They come in base64, CRC32C big-endian; ours are hex.
https://cloud.google.com/storage/docs/metadata#checksums
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from modelcache.domain.manifests import Algorithm, Checksum

_BYTES: Final = {Algorithm.CRC32C: 4, Algorithm.MD5: 16}


def published(crc32c: str | None, md5: str | None) -> tuple[Checksum, ...]:
    """From an object's metadata, best first; what is malformed counts as not published."""
    given = {Algorithm.CRC32C: _hex(crc32c), Algorithm.MD5: _hex(md5)}
    return tuple(
        Checksum(algorithm, value)
        for algorithm, value in given.items()
        if len(value) == 2 * _BYTES[algorithm]
    )


def of_whole(headers: Mapping[str, str]) -> tuple[Checksum, ...]:
    """From the response that brings the whole object (header names are lower-case).

    On a part the header is not to be relied on: some servers hash what they send.
    """
    if "content-range" in headers:
        return ()
    pairs = (pair.strip().partition("=") for pair in headers.get("x-goog-hash", "").split(","))
    found = {name: value for name, _, value in pairs}
    return published(found.get("crc32c"), found.get("md5"))


def _hex(text: str | None) -> str:
    try:
        return base64.b64decode(text or "", validate=True).hex()
    except (binascii.Error, ValueError):
        return ""
