"""What GCS's errors mean, whether they come through its client or on a data connection."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from socket import EAI_NODATA, EAI_NONAME, gaierror
from ssl import SSLCertVerificationError
from typing import Any, Final

import requests
from google.api_core.exceptions import GoogleAPICallError, RetryError

from modelcache.errors import (
    CredentialsExpired,
    Forbidden,
    ModelcacheError,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
)
from modelcache.sources.web import answers

NAME_SHOWN_CHARACTERS: Final = 200
CAUSES_MAX: Final = 8  # of an exception; they could be tied in a loop
CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
_NO_HOST: Final = frozenset({EAI_NONAME, EAI_NODATA})
_REASON: Final = re.compile(r"[A-Za-z_]{1,60}")
_THROTTLES: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"})
_PAYERS: Final = frozenset({"userProjectMissing", "userProjectInvalid", "userProjectAccessDenied"})
_SCOPES: Final = frozenset({"insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"})


@dataclass(frozen=True, slots=True)
class Answer:
    """An unsuccessful response. reason: GCS's own word for it, or empty.

    text: its sentence, to look for words in; it is never shown.
    """

    status: int
    headers: Mapping[str, str]
    reason: str
    text: str

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        """Read a body: JSON of Google's form, or anything else. Header names are lower-case."""
        try:
            error = json.loads(body)["error"]
            text = str(error["message"])
            reasons = [item.get("reason", "") for item in error.get("errors", ())]
            reason = str(reasons[0]) if reasons else ""
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            text, reason = body.decode(errors="replace"), ""
        return cls(status, headers, reason if _REASON.fullmatch(reason) else "", text.lower())


def shown(bucket: str, name: str = "") -> str:
    """Bucket and object for a message: no control characters, of bounded length."""
    name = name if name.isprintable() else repr(name)[1:-1]
    more = "…" if len(name) > NAME_SHOWN_CHARACTERS else ""
    return f"gs://{bucket}/{name[:NAME_SHOWN_CHARACTERS]}{more}"


def encoded(where: str) -> SourceRefused:
    """The error for an object whose bytes are not what a reader would be sent."""
    return SourceRefused(
        f"{where} is stored with Content-Encoding gzip or the like, so GCS may send other bytes "
        "than it stores; upload it again without, or exclude it"
    )


def not_gcs(where: str) -> SourceRefused:
    """The error for an endpoint that answers with something else."""
    return SourceRefused(
        f"{where}: the endpoint does not speak GCS's JSON API; check its address and port"
    )


def from_answer(  # noqa: C901, PLR0911 - a table
    where: str, answer: Answer, advice: str
) -> ModelcacheError:
    """The error for a refusal.

    advice: empty if a token was sent, else why none was and what to do.
    """
    after_s = answers.retry_after_s(answer.headers)
    if answer.reason in _THROTTLES or answer.status in {429, 503}:
        what = answer.reason or str(answer.status)
        return Throttled(f"{where}: GCS asks for fewer requests ({what})", retry_after_s=after_s)
    if answer.reason in _PAYERS or "requester pays" in answer.text:
        return Forbidden(
            f"{where}: the bucket wants its readers to pay ({answer.reason or answer.status}); "
            "name a project that you may bill: ?user-project=NAME"
        )
    match answer.status:
        case 401 if advice:
            return NoCredentials(f"{where} is not public, or does not exist (401); {advice}")
        case 401:
            return CredentialsExpired(
                f"{where}: GCS does not accept the access token (401); renew the credentials"
            )
        case 403:
            return Forbidden(_forbidden(where, answer, advice))
        case 404 if "bucket does not exist" in answer.text:
            return no_bucket(where)
        case 404:
            return NotFound(f"{where}: there is no such object")
        case 304 | 412 | 416:
            return changed(where)
        case status if status in answers.REDIRECTS:
            return SourceRefused(
                f"{where}: the endpoint redirects ({status}), which is not followed; name the "
                "address that it leads to"
            )
        case status:
            known = f" ({answer.reason})" if answer.reason else ""
            return answers.refusal(where + known, status, answer.headers, credentials_given=True)


def no_bucket(where: str) -> NotFound:
    """The error for a bucket that is not there."""
    return NotFound(f"{where}: there is no such bucket; check its name and the endpoint")


def changed(where: str) -> OriginChanged:
    """The error for an object that is no longer what was pinned."""
    return OriginChanged(f"{where} was replaced since it was listed; pull again")


@contextmanager
def translating(
    where: str, advice: str, *, missing: ModelcacheError | None = None
) -> Iterator[None]:
    """Turn what Google's client raises into our errors. missing: what a 404 means here."""
    try:
        yield
    except RetryError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise _translated(cause, where, advice, missing) from error
    except (GoogleAPICallError, requests.RequestException) as error:
        raise _translated(error, where, advice, missing) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise not_gcs(where) from error  # its client checks nothing of what it was sent


def passes(error: BaseException) -> bool:
    """Whether a request that failed so is worth repeating at once, for google-api-core."""
    if isinstance(error, GoogleAPICallError):
        return error.code in {408, 429, 500, 502, 503, 504}
    if not isinstance(error, requests.ConnectionError | requests.Timeout):
        return isinstance(error, requests.exceptions.ChunkedEncodingError)
    return not any(
        isinstance(cause, SSLCertVerificationError) or _is_no_host(cause)
        for cause in _causes(error)
    )


def _translated(
    error: Exception, where: str, advice: str, missing: ModelcacheError | None
) -> ModelcacheError:
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return not_gcs(where)
    if isinstance(error, requests.RequestException):
        return _from_network(error, where)
    if not isinstance(error, GoogleAPICallError):
        return SourceUnavailable(f"{where}: GCS does not answer ({type(error).__name__})")
    answer = _answer_of(error)
    if answer.status == 404 and missing is not None and "bucket does not exist" not in answer.text:  # noqa: PLR2004
        return missing
    found = from_answer(where, answer, advice)
    # The token has just been renewed, as far as it can be.
    return Forbidden(found.message) if isinstance(found, CredentialsExpired) else found


def _answer_of(error: GoogleAPICallError) -> Answer:
    response: Any = error.response
    if not isinstance(response, requests.Response):
        return Answer(int(error.code or 0), {}, "", "")
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer.of(response.status_code, headers, response.content)


def _forbidden(where: str, answer: Answer, advice: str) -> str:
    reason = answer.reason or "403"
    if answer.reason in _SCOPES:
        return (
            f"{where}: the access token's scope does not cover reading storage ({reason}); give "
            "the node the scope devstorage.read_only"
        )
    if "vpc service controls" in answer.text:
        return f"{where}: forbidden by a VPC service perimeter ({reason}); read it from inside"
    who = advice or "give these credentials the role storage.objectViewer on the bucket"
    return f"{where}: access denied ({reason}); {who}"


def _from_network(error: requests.RequestException, where: str) -> ModelcacheError:
    """Without the URL that requests puts into these: its query is nobody's business."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, SSLCertVerificationError):
            return SourceRefused(
                f"{where}: the endpoint's certificate is not trusted ({cause.verify_message}); set "
                "gcs.ca_file to the authority that signed it"
            )
        if _is_no_host(cause):
            return NotFound(f"{where}: there is no such host; check the endpoint")
    if isinstance(error, requests.exceptions.SSLError):
        return SourceRefused(f"{where}: the endpoint does not speak TLS; check its address")
    if isinstance(error, requests.Timeout):
        return SourceUnavailable(f"{where}: the endpoint does not answer in time")
    if isinstance(error, requests.ConnectionError):
        found = (cause.strerror for cause in causes if isinstance(cause, OSError))
        reason = next(filter(None, found), "hung up").lower()
        return SourceUnavailable(
            f"{where}: cannot connect to the endpoint ({reason}); check its address, and that it "
            "is up"
        )
    return SourceRefused(f"{where}: the endpoint cannot be used ({type(error).__name__})")


def _is_no_host(cause: BaseException) -> bool:
    return isinstance(cause, gaierror) and cause.errno in _NO_HOST


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What requests and urllib3 wrapped, outermost first."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            return
        yield cause
        wrapped = getattr(cause, "reason", None) or next(iter(cause.args), None)
        nested = wrapped if isinstance(wrapped, BaseException) else None
        cause = nested or cause.__cause__ or cause.__context__
