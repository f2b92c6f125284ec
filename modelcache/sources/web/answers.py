"""Reading responses: validators, published checksums, sizes, and what a refusal means.

Pure functions of status and headers (lower-case names); RFC 9110 unless another is named.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from modelcache.domain.manifests import Algorithm, Checksum, Pin
from modelcache.domain.retrying import retry_seconds
from modelcache.errors import (
    Forbidden,
    ModelcacheError,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
RETRY_AFTER_S_MAX: Final = 86_400.0  # what asks for more is not worth waiting for
# Quotes are obligatory, but some servers forget them; control characters would end our own header.
_ETAG: Final = re.compile(r'(?:W/)?(?:"[^"\x00-\x1f\x7f]*"|[\x21\x23-\x7e]+)')
_DIGEST: Final = re.compile(r"([A-Za-z0-9-]+)=(:?)([A-Za-z0-9+/]+={0,2})\2(?=[\s,;]|$)")
_USUAL_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3]\d (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) "
    r"\d{4} [0-2]\d:[0-5]\d:[0-6]\d GMT"
)
_HEX: Final = re.compile(r"[0-9a-fA-F]+")
_ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    "sha-256": Algorithm.SHA256,
    "crc32c": Algorithm.CRC32C,
    "sha": Algorithm.SHA1,
    "md5": Algorithm.MD5,
}
_BYTES: Final = {Algorithm.SHA256: 32, Algorithm.CRC32C: 4, Algorithm.SHA1: 20, Algorithm.MD5: 16}


def pin_of(headers: Mapping[str, str]) -> Pin:
    """The strongest validator a response carries.

    A strong ETag stands alone: servers behind one name may disagree about dates. A weak one may
    stay the same while bytes change, so the date is kept beside it.
    """
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    etag = etag if _ETAG.fullmatch(etag) else ""
    modified = modified if is_http_date(modified) else ""
    if etag and not etag.startswith("W/"):
        return Pin(etag=etag)
    if etag or modified:
        return Pin(etag=etag or None, modified=modified or None)
    return Pin(nonce=os.urandom(16).hex())


def condition(pin: Pin) -> tuple[str, str] | None:
    """The header that makes a server refuse when the pinned state is gone (13.1)."""
    if pin.etag and not pin.etag.startswith("W/"):
        return ("If-Match", pin.etag)
    if pin.modified:
        return ("If-Unmodified-Since", pin.modified)
    return None


def contradicts(pin: Pin, headers: Mapping[str, str]) -> bool:
    """Whether a response shows another state than the pinned one.

    A part of a file must carry the validator it was pinned by (15.3.7 demands it); a whole file in
    one response is at least not a mix, so there a missing one is forgiven.
    """
    part = "content-range" in headers
    if pin.etag:
        etag = headers.get("etag")
        if etag is not None:
            return etag.removeprefix("W/") != pin.etag.removeprefix("W/")
        if part:
            return True
    if pin.modified:
        modified = headers.get("last-modified")
        if modified is None:
            return part
        return modified != pin.modified and http_date(modified) != http_date(pin.modified)
    return False


def is_encoded(headers: Mapping[str, str]) -> bool:
    """Whether the body is not the file itself but, for example, its gzip."""
    return headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}


def length_of(headers: Mapping[str, str]) -> int | None:
    """Content-Length, if it is a number."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def total_of(headers: Mapping[str, str]) -> int | None:
    """Size of the whole file from Content-Range: `bytes 0-0/123` or, with a 416, `bytes */123`."""
    match = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", headers.get("content-range", "").strip())
    return int(match[1]) if match else None


def published_checksums(headers: Mapping[str, str]) -> tuple[Checksum, ...]:
    """Checksums of the whole file, best first.

    Repr-Digest and, on a whole body, Content-Digest (RFC 9530), Digest (RFC 3230), X-Checksum-*
    (Artifactory, Nexus). What is malformed counts as not published.
    """
    found: dict[Algorithm, str] = {}
    names = ["repr-digest", "digest"]
    if "content-range" not in headers:
        names.append("content-digest")
    for name in names:
        for spelled, _, value in _DIGEST.findall(headers.get(name, "")):
            algorithm = _ALGORITHMS.get(spelled.lower())
            if algorithm is not None:
                found.setdefault(algorithm, _hex_of(value))
    for algorithm in (Algorithm.SHA256, Algorithm.SHA1, Algorithm.MD5):
        value = headers.get(f"x-checksum-{algorithm}", "").strip()
        if _HEX.fullmatch(value):
            found.setdefault(algorithm, value.lower())
    return tuple(
        Checksum(algorithm, found[algorithm])
        for algorithm in _BYTES
        if len(found.get(algorithm, "")) == 2 * _BYTES[algorithm]
    )


def refusal(  # noqa: C901, PLR0911 - a table
    where: str,
    status: int,
    headers: Mapping[str, str],
    *,
    credentials_given: bool,
    advice: str = "put them in ~/.netrc or http.headers",
) -> ModelcacheError:
    """What an unsuccessful status means.

    where: the URL without its query. advice: what to do where credentials are wanted.
    """
    match status:
        case 401 if credentials_given:
            return Forbidden(f"{where} does not accept the credentials it was given (401)")
        case 401:
            return NoCredentials(f"{where} wants credentials (401); {advice}")
        case 403:
            return Forbidden(
                f"{where} is forbidden (403); check the credentials, and if the URL is a signed "
                "one get a new one"
            )
        case 404 | 410:
            return NotFound(f"{where} does not exist ({status})")
        case 407:
            return NoCredentials(f"the proxy on the way to {where} wants credentials (407)")
        case 412 | 416:
            return OriginChanged(
                f"{where} was changed since it was listed ({status}); pull again to resolve it anew"
            )
        case 429 | 503:
            after_s = retry_after_s(headers)
            return Throttled(f"{where} asks for fewer requests ({status})", retry_after_s=after_s)
        case 408 | 425:
            return SourceUnavailable(f"{where} answered {status}")
        case _ if status in REDIRECTS:
            return SourceRefused(f"{where} redirects to nowhere ({status} without Location)")
        case _ if 400 <= status < 500 or status == 501:  # noqa: PLR2004 - repeating will not help
            return SourceRefused(f"{where} answered {status}")
        case _:
            after_s = retry_after_s(headers)
            return SourceUnavailable(f"{where} answered {status}", retry_after_s=after_s)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After (10.2.3) in seconds; a date is taken relative to the server's own clock."""
    value = headers.get("retry-after", "").strip()
    seconds = retry_seconds(value, RETRY_AFTER_S_MAX)
    if seconds is not None:
        return seconds
    until = http_date(value)
    if until is None:
        return None
    now = http_date(headers.get("date", "")) or datetime.now(UTC)
    return min(max(0.0, (until - now).total_seconds()), RETRY_AFTER_S_MAX)


def http_date(text: str) -> datetime | None:
    """Any of the three forms of 5.6.7, or None for what is none of them."""
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_http_date(text: str) -> bool:
    """Whether `http_date` would read it; quick for the usual form, as an index has thousands."""
    return _USUAL_DATE.fullmatch(text) is not None or http_date(text) is not None


def _hex_of(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).hex()
    except binascii.Error:
        return ""
