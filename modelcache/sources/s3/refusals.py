"""What S3's errors mean, whether they come through botocore or on a data connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from modelcache.errors import (
    CredentialsExpired,
    Forbidden,
    InvalidConfig,
    InvalidRef,
    ModelcacheError,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)

_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_THROTTLES: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
)
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_BY_STATUS: Final = {
    "301": "PermanentRedirect",
    "400": "BadRequest",
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "412": "PreconditionFailed",
    "429": "SlowDown",
    "503": "SlowDown",
}
MISPLACED: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)


def error_code(status: int, body: bytes) -> str:
    """The code in an error document, or the one that usually goes with the status."""
    match = _CODE.search(body)
    return match[1].decode() if match else _BY_STATUS.get(str(status), str(status))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After; S3 sends no dates."""
    value = headers.get("retry-after", "")
    return float(value) if value.isdigit() else None


def from_code(  # noqa: C901, PLR0911, PLR0912 - a table
    code: str, where: str, *, status: int, after_s: float | None = None
) -> ModelcacheError:
    """The error for one of S3's codes; `where` names bucket and key."""
    if code in _THROTTLES or status in {429, 503}:
        return Throttled(f"{where}: S3 asks for fewer requests ({code})", retry_after_s=after_s)
    if code in _EXPIRED:
        return CredentialsExpired(f"{where}: the session's credentials have expired; renew them")
    if code in MISPLACED:
        return CredentialsExpired(f"{where}: the bucket lies in another region")
    match code:
        case "NoSuchBucket":
            return NotFound(f"{where}: there is no such bucket; check its name and the endpoint")
        case "NoSuchKey" | "NotFound" | "NoSuchVersion" | "404" | "MethodNotAllowed":
            return NotFound(f"{where}: there is no such object")
        case "PreconditionFailed" | "412":
            return OriginChanged(f"{where} was changed since it was listed; pull again")
        case "InvalidAccessKeyId" | "InvalidToken" | "UnrecognizedClientException":
            return Forbidden(f"{where}: S3 does not know this access key; check the credentials")
        case "SignatureDoesNotMatch":
            return Forbidden(f"{where}: the secret key does not belong to the access key")
        case "RequestTimeTooSkewed":
            return SourceRefused(f"{where}: this machine's clock is wrong; set it (NTP)")
        case "InvalidObjectState":
            return SourceRefused(f"{where} is archived; restore it first")
        case "AccessDenied" | "AllAccessDisabled" | "Forbidden" | "403":
            return Forbidden(f"{where}: access denied; these credentials may not read it")
        case _ if 400 <= status < 500:  # noqa: PLR2004 - repeating would not help
            return SourceRefused(f"{where}: S3 refused the request ({code})")
        case _:
            return SourceUnavailable(f"{where}: S3 answered {code}", retry_after_s=after_s)


def translate(error: BotoCoreError | ClientError, where: str) -> ModelcacheError:  # noqa: C901, PLR0911
    """The error for whatever botocore raised."""
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", status))
        found = from_code(_BY_STATUS.get(code, code), where, status=status)
        if isinstance(found, CredentialsExpired):  # nothing newer than what botocore had
            return Forbidden(found.message)
        return found
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return NoCredentials(
                f"{where}: no complete AWS credentials were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, a profile or a role, or anonymous=1 for a public bucket"
            )
        case CredentialRetrievalError() | SSOError():
            return NoCredentials(f"{where}: credentials cannot be had: {_text(error)}")
        case ProfileNotFound():
            return InvalidConfig(f"{_text(error)}; see ~/.aws/config")
        case ParamValidationError():
            return InvalidRef(f"{where}: {_text(error)}")
        case SSLError():
            return SourceRefused(
                f"{where}: the server's certificate is not trusted; set s3.ca_file"
            )
        case BotoConnectionError() | HTTPClientError():
            return SourceUnavailable(f"{where}: {_text(error)}")
        case _:
            return SourceRefused(f"{where}: {_text(error)}")


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
