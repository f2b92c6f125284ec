"""What S3's errors mean, whether they come through botocore or on a data connection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from socket import EAI_NODATA, EAI_NONAME, gaierror
from ssl import SSLCertVerificationError
from typing import Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    InvalidRegionError,
    MetadataRetrievalError,
    MissingDependencyException,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.util.ssl_match_hostname import CertificateError as WrongHost

from modelcache.domain.retrying import retry_seconds
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

KEY_SHOWN_CHARACTERS: Final = 200
CAUSES_MAX: Final = 8  # of an exception; they could be tied in a loop
RETRY_AFTER_S_MAX: Final = 3600.0  # an origin cannot make us wait longer by a typing error
SKEW_MAX: Final = timedelta(minutes=10)  # S3 refuses beyond 15; our own signatures age up to 10
SKEWED: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
MISPLACED: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "Redirect",
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
        "IllegalLocationConstraintException",
    }
)
_THROTTLES: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
)
_PASSING: Final = frozenset(  # with status 4xx, and yet no fault of ours
    {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "IncompleteBody"}
)
_STRANGER: Final = frozenset(
    {"InvalidAccessKeyId", "InvalidToken", "InvalidTokenId", "UnrecognizedClientException"}
)
_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"})
_MISSING: Final = frozenset({"NoSuchKey", "NotFound", "NoSuchVersion", "MethodNotAllowed"})
_BY_STATUS: Final = {  # for answers without a document: to HEAD, or from something in between
    "301": "PermanentRedirect",
    "307": "TemporaryRedirect",
    "400": "BadRequest",
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "405": "MethodNotAllowed",
    "412": "PreconditionFailed",
    "429": "SlowDown",
    "503": "SlowDown",
}
_NO_HOST: Final = frozenset({EAI_NONAME, EAI_NODATA})
_CODE: Final = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_SIGNING_IN: Final = ("Assume", "GetRoleCredentials", "CreateToken", "GetCallerIdentity", "SignIn")


def shown(bucket: str, key: str) -> str:
    """Bucket and key for a message: no control characters, of bounded length."""
    name = key if key.isprintable() else repr(key)[1:-1]
    more = "…" if len(name) > KEY_SHOWN_CHARACTERS else ""
    return f"s3://{bucket}/{name[:KEY_SHOWN_CHARACTERS]}{more}"


def error_code(status: int, body: bytes) -> str:
    """The code in an error document, or the one that usually goes with the status."""
    match = _CODE.search(body)
    return match[1].decode() if match else _BY_STATUS.get(str(status), str(status))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After; S3 sends no dates."""
    return retry_seconds(headers.get("retry-after", ""), RETRY_AFTER_S_MAX)


def clock_error(headers: Mapping[str, str]) -> timedelta | None:
    """How far this machine's clock is ahead of the server's; None where that is unknown."""
    try:
        return datetime.now(UTC) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


def from_code(  # noqa: C901, PLR0911, PLR0912 - a table
    code: str, where: str, *, status: int, after_s: float | None = None
) -> ModelcacheError:
    """The error for one of S3's codes; `where` names bucket and key."""
    if code in _THROTTLES or status in {429, 503}:
        return Throttled(f"{where}: S3 asks for fewer requests ({code})", retry_after_s=after_s)
    if code in EXPIRED:
        return CredentialsExpired(f"{where}: the credentials have expired; renew them")
    if code in MISPLACED:
        return CredentialsExpired(
            f"{where}: the bucket lies in another region; name it with ?region=NAME"
        )
    if code in SKEWED:
        return CredentialsExpired(f"{where}: the request was signed too long ago")
    if code in _MISSING:
        return NotFound(f"{where}: there is no such object")
    if code in _STRANGER:
        return Forbidden(f"{where}: S3 does not know these credentials; check the access key")
    if code in _DENIED:
        return Forbidden(
            f"{where}: access denied; these credentials may not read it (if the bucket wants its "
            "readers to pay, add ?requester-pays)"
        )
    match code:
        case "NoSuchBucket":
            return NotFound(f"{where}: there is no such bucket; check its name and the endpoint")
        case "PreconditionFailed":
            return OriginChanged(f"{where} was changed since it was listed; pull again")
        case "SignatureDoesNotMatch":
            return Forbidden(
                f"{where}: the secret key does not belong to the access key, or something between "
                "here and S3 changes requests; check the credentials"
            )
        case "InvalidObjectState":
            return archived(where)
        case "InvalidBucketName":
            return InvalidRef(f"{where}: this is not a bucket's name")
        case _ if 400 <= status < 500 and code not in _PASSING:  # noqa: PLR2004 - client errors
            return SourceRefused(f"{where}: S3 refused the request ({code})")
        case _:
            return SourceUnavailable(f"{where}: S3 answered {code}", retry_after_s=after_s)


def archived(where: str) -> SourceRefused:
    """The error for an object that must be brought back from an archive first."""
    return SourceRefused(f"{where} is archived; restore it, or exclude it with a filter")


def too_skewed(where: str, ahead: timedelta) -> SourceRefused:
    """The error for a machine whose clock is wrong."""
    minutes = round(abs(ahead.total_seconds()) / 60)
    side = "ahead of" if ahead > timedelta() else "behind"
    return SourceRefused(
        f"{where}: this machine's clock is {minutes} minutes {side} the server's, so its requests "
        "are refused; set the clock (NTP)"
    )


@contextmanager
def translating(where: str) -> Iterator[None]:
    """Turn what botocore raises into our errors."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise translate(error, where) from error
    except ValueError as error:  # botocore's, for endpoints and profiles that cannot be
        raise InvalidConfig(f"{where}: {_text(error)}") from error


def translate(error: BotoCoreError | ClientError, where: str) -> ModelcacheError:
    """The error for whatever botocore raised. What it could renew or repeat, it has."""
    cause = getattr(error, "kwargs", {}).get("error")
    if isinstance(cause, ModelcacheError):  # ours, of a connection that may not be
        return cause
    return _from_answer(error, where) if isinstance(error, ClientError) else _from_sdk(error, where)


def _from_answer(error: ClientError, where: str) -> ModelcacheError:
    answer = error.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", status))
    if error.operation_name.startswith(_SIGNING_IN):
        return NoCredentials(f"{where}: credentials cannot be had: {_text(error)}")
    if code in SKEWED:
        ahead = clock_error(answer.get("HTTPHeaders", {}))
        return too_skewed(where, ahead or timedelta())
    if code == "404" and not error.operation_name.startswith("Head"):
        return not_s3(where)  # S3 itself would have said what is missing
    found = from_code(_BY_STATUS.get(code, code), where, status=status)
    # botocore signed a moment ago with the newest there is, in the region it was told.
    return Forbidden(found.message) if isinstance(found, CredentialsExpired) else found


def _from_sdk(error: BotoCoreError, where: str) -> ModelcacheError:  # noqa: PLR0911 - a table
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return NoCredentials(
                f"{where}: no complete AWS credentials were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, a profile or a role, or add ?anonymous for a public bucket"
            )
        case (
            CredentialRetrievalError()
            | MetadataRetrievalError()
            | SSOError()
            | TokenRetrievalError()
            | MissingDependencyException()
        ):
            return NoCredentials(f"{where}: credentials cannot be had: {_text(error)}")
        case ProfileNotFound() | ConfigNotFound() | ConfigParseError():
            return InvalidConfig(f"{_text(error)}; see ~/.aws/config")
        case InvalidConfigError() | InfiniteLoopConfigError():
            return InvalidConfig(f"AWS configuration: {_text(error)}")
        case ParamValidationError() | InvalidRegionError():
            return InvalidRef(f"{where}: {_text(error).partition(': Bucket name must')[0]}")
        case ResponseParserError():
            return not_s3(where)
        case SSLError() | BotoConnectionError() | HTTPClientError():
            return _from_network(error, where)
        case _:
            return SourceRefused(f"{where}: {_text(error)}")


def _from_network(error: BotoCoreError, where: str) -> ModelcacheError:
    """Without the URL that botocore puts into these: it repeats the ref, and more."""
    server = urlsplit(str(error.kwargs.get("endpoint_url", ""))).netloc or "the endpoint"
    causes = list(_causes(error))
    if isinstance(error, SSLError):
        return _from_tls(causes, where, server)
    if any(isinstance(cause, gaierror) and cause.errno in _NO_HOST for cause in causes):
        return NotFound(f"{where}: there is no host {server}; check the endpoint")
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        reason = next((cause.strerror for cause in causes if isinstance(cause, OSError)), None)
        return SourceUnavailable(
            f"{where}: cannot connect to {server} ({reason or 'no answer in time'}); check the "
            "endpoint, and that it is up"
        )
    if isinstance(error, ConnectionClosedError):
        return SourceUnavailable(
            f"{where}: {server} hung up instead of answering; check the endpoint, http or https too"
        )
    return SourceUnavailable(f"{where}: {server} does not answer ({type(error).__name__})")


def _from_tls(causes: list[BaseException], where: str, server: str) -> SourceRefused:
    for cause in causes:
        if isinstance(cause, SSLCertVerificationError):
            return SourceRefused(
                f"{where}: the certificate of {server} is not trusted "
                f"({cause.verify_message}); set s3.ca_file to the authority that signed it"
            )
        if isinstance(cause, WrongHost):
            return SourceRefused(
                f"{where}: the certificate of {server} is for another host; check the endpoint"
            )
    return SourceRefused(f"{where}: {server} does not speak TLS here; check the endpoint")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What botocore and urllib3 wrapped, outermost first."""
    cause: BaseException | None = getattr(error, "kwargs", {}).get("error")
    for _ in range(CAUSES_MAX):
        if cause is None:
            return
        yield cause
        wrapped = getattr(cause, "reason", None)
        nested = wrapped if isinstance(wrapped, BaseException) else None
        cause = nested or cause.__cause__ or cause.__context__


def not_s3(where: str) -> SourceRefused:
    """The error for an endpoint that answers with something else, say a console's web page."""
    return SourceRefused(f"{where}: the endpoint does not speak S3; check its address and port")


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
