"""SigV4 for the one request that a source hands out: GET an object, no body.

botocore's signer takes a request object apart to find what we know already, which costs 65 µs for
each of 10,000 small files; this one makes the same signature in a fifth of that. It proves so on a
request that botocore signed for the same bucket (`reproduces`), and where it cannot (multi-region
access points, S3 Express) botocore signs every request itself.

Format: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from botocore.credentials import ReadOnlyCredentials

_ALGORITHM: Final = "AWS4-HMAC-SHA256"

Pairs = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signature is valid for, beside its day."""

    region: str
    service: str


class GetSigner:
    """Signs with one set of credentials for one scope. Thread-safe."""

    def __init__(self, credentials: ReadOnlyCredentials, scope: Scope) -> None:
        self.credentials = credentials
        self.scope = scope
        self._key: tuple[str, bytes] = ("", b"")  # of one day; replaced as a whole

    def authorization(self, path: str, query: str, headers: Pairs, payload: str, stamp: str) -> str:
        """Value of the Authorization header.

        path, query: percent-encoded as sent. headers: all that are signed, with lower-case names,
        sorted, and values without white space to trim. stamp: `YYYYMMDDTHHMMSSZ`, also X-Amz-Date.
        """
        names = []
        lines = ["GET", path, query]
        for name, value in headers:
            names.append(name)
            lines.append(f"{name}:{value}")
        signed = ";".join(names)
        lines += ("", signed, payload)
        day = stamp[:8]
        scope = f"{day}/{self.scope.region}/{self.scope.service}/aws4_request"
        digest = sha256("\n".join(lines).encode()).hexdigest()
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}".encode()
        signature = hmac.digest(self._key_of(day), text, "sha256").hex()
        return (
            f"{_ALGORITHM} Credential={self.credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )

    def _key_of(self, day: str) -> bytes:
        known, key = self._key
        if known != day:
            key = f"AWS4{self.credentials.secret_key}".encode()
            for part in (day, self.scope.region, self.scope.service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, key)
        return key


def scope_of(authorization: str) -> Scope | None:
    """The scope that botocore signed for; None when it is no plain SigV4."""
    algorithm, _, rest = authorization.partition(" Credential=")
    parts = rest.partition(",")[0].rsplit("/", 4)  # an access key may have slashes in it
    if algorithm != _ALGORITHM or len(parts) != 5:  # noqa: PLR2004 - key/day/region/service/end
        return None
    return Scope(region=parts[2], service=parts[3])


def reproduces(signer: GetSigner, path: str, query: str, headers: Mapping[str, str]) -> bool:
    """Whether `signer` comes to the signature that stands in `headers` (lower-case names)."""
    authorization = headers["authorization"]
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    pairs = [(name, " ".join(headers.get(name, "").split())) for name in names]
    payload = headers.get("x-amz-content-sha256", "")
    mine = signer.authorization(path, query, pairs, payload, headers.get("x-amz-date", ""))
    return hmac.compare_digest(mine.encode(), authorization.encode())
