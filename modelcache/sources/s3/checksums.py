"""Checksums that S3 publishes, from headers and from GetObjectAttributes.

A FULL_OBJECT checksum is over the bytes; a COMPOSITE one over the checksums of the parts, written
with `-N` behind it, and can be checked only where the parts are known. An ETag is the MD5 of a
single-part object unless a KMS or customer key encrypts it. S3 publishes base64, we keep hex.

Rules: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelcache.domain.manifests import Algorithm, Checksum

# The order in which they are tried: an identity, then the cheap ones, then those that go in order.
WIDTHS: Final = {  # bytes
    Algorithm.SHA256: 32,
    Algorithm.CRC64NVME: 8,
    Algorithm.CRC32C: 4,
    Algorithm.CRC32: 4,
    Algorithm.SHA1: 20,
}
_HEADERS: Final = tuple((algorithm, f"x-amz-checksum-{algorithm.value}") for algorithm in WIDTHS)
_ETAG: Final = re.compile(r'"?([0-9a-f]{32})(?:-([0-9]{1,5}))?"?')
_OPAQUE_ENCRYPTION: Final = frozenset({"aws:kms", "aws:kms:dsse", "aws:fsx"})


@dataclass(frozen=True, slots=True)
class Composite:
    """A checksum over parts whose sizes are not known yet. value: hex."""

    algorithm: Algorithm
    value: str


def published(headers: Mapping[str, str], size_bytes: int) -> tuple[Checksum, ...]:
    """Checksums of a HEAD or whole-object GET response that can be checked, best first."""
    etag = _ETAG.fullmatch(headers.get("etag", ""))
    parts = int(etag[2] or 0) if etag else 0
    found = []
    for algorithm, value, count in _values(headers):
        if count == 1:
            found.append(Checksum(algorithm, value, (size_bytes,)))
        elif count == 0 and (parts == 0 or headers.get("x-amz-checksum-type")):
            # Of several parts and without a type it may be either kind, and some servers lie.
            found.append(Checksum(algorithm, value))
    if etag and parts < 2 and not _opaque(headers):  # noqa: PLR2004 - an MD5 of several MD5s
        found.append(Checksum(Algorithm.MD5, etag[1], (size_bytes,) if parts else ()))
    return tuple(found) if size_bytes else ()


def composite(headers: Mapping[str, str]) -> Composite | None:
    """The COMPOSITE checksum of an object of several parts, if that is what it has."""
    for algorithm, value, count in _values(headers):
        if count > 1:
            return Composite(algorithm, value)
    return None


def with_parts(checksum: Composite, parts: list[dict[str, Any]]) -> Checksum | None:
    """A COMPOSITE checksum with the parts that GetObjectAttributes lists; None if some lack it."""
    name = "Checksum" + checksum.algorithm.value.upper()
    values = tuple(_hex(checksum.algorithm, part.get(name, "")) for part in parts)
    if not parts or not all(values):
        return None
    sizes = tuple(int(part["Size"]) for part in parts)
    return Checksum(checksum.algorithm, checksum.value, sizes, values)


def _values(headers: Mapping[str, str]) -> list[tuple[Algorithm, str, int]]:
    """Algorithm, hex, and the number of parts; 0 for FULL_OBJECT, or where nothing is said."""
    kind = headers.get("x-amz-checksum-type")
    found = []
    for algorithm, name in _HEADERS:
        header = headers.get(name)
        if not header:
            continue
        text, _, count = header.partition("-")
        value = _hex(algorithm, text)
        parts = int(count) if count.isdecimal() else 0
        if kind == "COMPOSITE":
            parts = parts or _etag_parts(headers)
        if value and (parts or kind != "COMPOSITE"):
            found.append((algorithm, value, parts))
    return found


def _etag_parts(headers: Mapping[str, str]) -> int:
    """How many parts the ETag speaks of; 0 for an object that was put in one go."""
    etag = _ETAG.fullmatch(headers.get("etag", ""))
    return int(etag[2] or 0) if etag else 0


def _opaque(headers: Mapping[str, str]) -> bool:
    """Whether the object is encrypted in a way that makes its ETag no MD5."""
    if headers.get("x-amz-server-side-encryption") in _OPAQUE_ENCRYPTION:
        return True
    return any(name.startswith("x-amz-server-side-encryption-customer") for name in headers)


def _hex(algorithm: Algorithm, value: str) -> str:
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == WIDTHS[algorithm] else ""
