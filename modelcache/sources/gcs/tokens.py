"""Access tokens: found once where Google's own tools look, renewed before they end.

google-auth knows the kinds of credentials (key files, workload identity, gcloud's own, the metadata
server); here is decided when it is asked, and what it means when it has no answer. No token, and no
text of a token service, gets into a message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final

import google.auth
from google.auth.credentials import with_scopes_if_required
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport import Response
from google.auth.transport.requests import Request

from modelcache.errors import InvalidConfig, ModelcacheError, NoCredentials, SourceUnavailable

SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_only"
GOOD_FOR_S: Final = 3600.0  # what does not tell its end: nothing at all, or a fixed token
RENEW_BEFORE_S: Final = 225.0  # as google-auth; the metadata server hands out a new one at 300
TIMES_OUT_S: Final = 30.0  # of one request to a token service
TRICKLE_S: Final = 30.0  # so long, refusals of requests sent before a renewal may come in
PAUSE_S: Final = 30.0  # between renewals of a token that never has RENEW_BEFORE_S left
_KEY_FILE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_CODE: Final = re.compile(r"[a-z_]{1,40}")  # RFC 6749, section 5.2
_VALUE: Final = re.compile(r"[\x20-\x7e]+")  # what a header can carry

# google-auth warns of projects it cannot guess. Without any handler that would go to stderr.
logging.getLogger("google").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Authorization:
    """Headers to send, and until when (monotonic clock) they will be accepted."""

    headers: tuple[tuple[str, str], ...] = field(repr=False)
    ends_s: float

    @property
    def good_for_s(self) -> float:
        """Seconds left."""
        return max(0.0, self.ends_s - monotonic())


class _Request(Request):
    """How token services are asked: with less patience than google-auth's two minutes."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = TIMES_OUT_S,
        **more: Any,  # noqa: ANN401 - as google-auth has it
    ) -> Response:
        answer: Response = super().__call__(  # type: ignore[no-untyped-call]
            url, method, body, headers, timeout, **more
        )
        return answer


class Tokens:
    """One set of credentials, or none. Thread-safe.

    advice: where no token is sent, why not and what to do, for messages.
    """

    def __init__(self, where: str, *, without: str = "") -> None:
        """Look for credentials, unless `without` says why none are to be sent.

        where: the bucket, for messages. Raises InvalidConfig for a file that cannot be used.
        """
        self._where = where
        self._guard = threading.Lock()
        self._doubted = False
        self._renewed_s = -PAUSE_S
        self._replaced_s = -TRICKLE_S
        self._current: Authorization | None = None
        self._request = _Request()
        self._credentials: Any = None if without else self._find()
        self.advice = without or ("" if self.given else _NONE_FOUND)

    @property
    def given(self) -> bool:
        """Whether there are credentials to send."""
        return self._credentials is not None

    def current(self) -> Authorization:
        """What to send now. Renews what is about to end.

        Raises NoCredentials, SourceUnavailable.
        """
        if not self.given:
            return Authorization((), monotonic() + GOOD_FOR_S)
        current = self._current
        if current is None or self._is_due(current):
            with self._guard:
                current = self._current
                if current is None or self._is_due(current):
                    current = self._renewed()
        return current

    def doubt(self) -> None:
        """Take note that the token was refused, for `renew`."""
        self._doubted = self.given

    def renew(self) -> None:
        """Get another token if the last was refused. Cheap when it was not.

        Raises NoCredentials, SourceUnavailable.
        """
        if not self._doubted:
            return
        with self._guard:
            self._doubted = False
            if monotonic() - self._replaced_s >= TRICKLE_S:
                self._renewed()
                self._replaced_s = monotonic()

    def _is_due(self, current: Authorization) -> bool:
        """Whether to renew; a token that was short-lived from the start is not asked for twice."""
        left_s = current.good_for_s
        if left_s >= RENEW_BEFORE_S:
            return False
        return not left_s or monotonic() - self._renewed_s >= PAUSE_S

    def _find(self) -> Any:  # noqa: ANN401 - google-auth has many classes and no common type
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about quota projects of end users
                # Scopes come after: with them google-auth would look up a project's name, which
                # costs workload identity two requests and fails where that service is closed off.
                credentials, _ = google.auth.default(request=self._request)
        except DefaultCredentialsError as error:
            named = os.environ.get(_KEY_FILE)
            if named:
                raise InvalidConfig(
                    f"{_KEY_FILE} names {named[:200]!r}, which is no readable file of credentials"
                ) from error
            if (path := _gcloud_file()).exists():
                raise InvalidConfig(
                    f"{path} is no readable file of credentials; run "
                    "`gcloud auth application-default login` again"
                ) from error
            return None
        except GoogleAuthError as error:  # a metadata server that is there and does not answer
            raise self._translated(error) from None
        return with_scopes_if_required(credentials, [SCOPE])  # type: ignore[no-untyped-call]

    def _renewed(self) -> Authorization:
        """Call with the guard held."""
        before_s = monotonic()
        try:
            self._credentials.refresh(self._request)
        except GoogleAuthError as error:
            raise self._translated(error) from None  # it may quote the service's answer
        except (OSError, ValueError) as error:  # of a token file; of a key that is none
            raise NoCredentials(
                f"{self._where}: the credentials cannot be used ({type(error).__name__}); check "
                "the file they come from"
            ) from None
        headers: dict[str, str] = {}
        self._credentials.apply(headers)
        if not all(map(_VALUE.fullmatch, headers.values())):
            raise NoCredentials(f"{self._where}: the token service sent what cannot be a token")
        self._current = Authorization(
            tuple(headers.items()), before_s + _left_s(self._credentials.expiry)
        )
        self._renewed_s = monotonic()
        return self._current

    def _translated(self, error: GoogleAuthError) -> ModelcacheError:
        if error.retryable or isinstance(error, TransportError) or _is_unreachable(error):
            return SourceUnavailable(
                f"{self._where}: the service that gives access tokens does not answer "
                f"({type(error).__name__})"
            )
        return NoCredentials(
            f"{self._where}: the credentials give no access token ({_code_of(error)}); check that "
            "they are still valid and that this machine's clock is right, or renew them with "
            "`gcloud auth application-default login`"
        )


def _gcloud_file() -> Path:
    """Where gcloud keeps application-default credentials."""
    folder = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")  # noqa: PTH111
    return Path(folder) / "application_default_credentials.json"


def _left_s(expiry: datetime | None) -> float:
    """google-auth's expiry is in UTC and does not say so."""
    if expiry is None:
        return GOOD_FOR_S
    return (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()


def _is_unreachable(error: GoogleAuthError) -> bool:
    """Whether the service was not reached; google-auth wraps that, too."""
    return isinstance(error.__cause__ or error.__context__, TransportError)


def _code_of(error: GoogleAuthError) -> str:
    """The error's code as OAuth defines it: the one part of an answer that is surely no secret."""
    for argument in error.args:
        answer = _read(argument) if isinstance(argument, str) else argument
        code = answer.get("error") if isinstance(answer, Mapping) else None
        if isinstance(code, str) and _CODE.fullmatch(code):
            return code
    return "refused"


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_NONE_FOUND: Final = (
    "no credentials were found: set GOOGLE_APPLICATION_CREDENTIALS to a file of them, run "
    "`gcloud auth application-default login`, or give the node a service account"
)
