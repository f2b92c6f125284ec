"""Checksums that S3 publishes, from headers and from GetObjectAttributes.

A FULL_OBJECT checksum is over the bytes; a COMPOSITE one over the checksums of the parts, written
with `-N` behind it, and can be checked only where the parts are known. An ETag is the MD5 of a
single-part object unless a KMS or customer key encrypts it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from modelcache.domain.manifests import Algorithm, Checksum

# The order in which they are tried: an identity, then the cheap ones, then those that go in order.
ORDER: Final = (
    Algorithm.SHA256,
    Algorithm.CRC64NVME,
    Algorithm.CRC32C,
    Algorithm.CRC32,
    Algorithm.SHA1,
)
_MD5_ETAG: Final = re.compile(r'"?([0-9a-f]{32})"?')
_OPAQUE_ENCRYPTION: Final = frozenset({"aws:kms", "aws:kms:dsse"})


def published(headers: Mapping[str, str]) -> tuple[Checksum, ...]:
    """Whole-object checksums of a HEAD or whole-object GET response, best first."""
    kind = headers.get("x-amz-checksum-type", "")
    found = []
    for algorithm in ORDER:
        value = headers.get(f"x-amz-checksum-{algorithm.value}", "")
        if not value or "-" in value or kind == "COMPOSITE":
            continue
        digest = _hex(value)
        if digest:
            found.append(Checksum(algorithm, digest))
    return (*found, *_md5(headers))


def composite(headers: Mapping[str, str]) -> tuple[Algorithm, str] | None:
    """The algorithm and value (hex) of a COMPOSITE checksum, if that is what the object has."""
    for algorithm in ORDER:
        value = headers.get(f"x-amz-checksum-{algorithm.value}", "")
        if value and ("-" in value or headers.get("x-amz-checksum-type") == "COMPOSITE"):
            digest = _hex(value.partition("-")[0])
            if digest:
                return algorithm, digest
    return None


def with_parts(algorithm: Algorithm, value: str, parts: list[dict[str, Any]]) -> Checksum | None:
    """A COMPOSITE checksum with the parts that GetObjectAttributes lists; None if some lack it."""
    name = "Checksum" + algorithm.value.upper()
    values = tuple(_hex(part.get(name, "")) for part in parts)
    if not parts or not all(values):
        return None
    return Checksum(algorithm, value, tuple(int(part["Size"]) for part in parts), values)


def _md5(headers: Mapping[str, str]) -> tuple[Checksum, ...]:
    if headers.get("x-amz-server-side-encryption") in _OPAQUE_ENCRYPTION:
        return ()
    if any(name.startswith("x-amz-server-side-encryption-customer") for name in headers):
        return ()
    match = _MD5_ETAG.fullmatch(headers.get("etag", ""))
    return (Checksum(Algorithm.MD5, match[1]),) if match else ()


def _hex(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).hex()
    except (binascii.Error, ValueError):
        return ""
