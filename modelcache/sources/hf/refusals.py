"""What a hub's refusals mean. Hubs say it in headers: X-Error-Code, X-Error-Message, RateLimit.

A hub does not tell a stranger what is private: what is missing and what may not be seen look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from huggingface_hub.utils._http import parse_ratelimit_headers

from modelcache.errors import Forbidden, ModelcacheError, NotFound
from modelcache.sources.hf.access import Access
from modelcache.sources.web import answers

PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def refused(
    access: Access, path: str, status: int, headers: Mapping[str, str], *, revision: str = ""
) -> ModelcacheError:
    """Translate an unsuccessful answer. path: inside the repository; empty for the repository.

    Header names are lower-case.
    """
    where = f"{access.page}/{path}" if path else access.page
    match headers.get("x-error-code"):
        case "GatedRepo":
            return _gated(access)
        case "RevisionNotFound":
            return NotFound(f"{access.page} has no revision {revision or 'of that name'!r}")
        case "EntryNotFound":
            return NotFound(f"{where} does not exist")
        case "RepoNotFound":
            return _hidden(access)
        case _:
            return _by_status(access, where, status, headers)


def _by_status(
    access: Access, where: str, status: int, headers: Mapping[str, str]
) -> ModelcacheError:
    match status, headers.get("x-error-message", ""):
        case _, "Access to this resource is disabled.":
            return Forbidden(f"{access.page} was disabled by the hub")
        case 401, "Invalid credentials in Authorization header":
            return Forbidden(
                f"{access.endpoint} does not accept the token that was given (401); check "
                "HF_TOKEN and hf.token_file, or run `hf auth login` again"
            )
        case 401, _:
            return _hidden(access)
        case 403, _ if access.token_given:
            return Forbidden(f"{where} is forbidden to the token that was given (403)")
        case _:
            given = access.token_given
            delayed = _with_delay(headers)
            return answers.refusal(where, status, delayed, credentials_given=given)


def _gated(access: Access) -> Forbidden:
    if access.token_given:
        return Forbidden(
            f"{access.page} is gated: accept the conditions at {access.page} with the account "
            "whose token was given, or set HF_TOKEN to the token of one that has"
        )
    todo = "set HF_TOKEN" if access.trusted else access.advice
    return Forbidden(f"{access.page} is gated: accept the conditions at {access.page} and {todo}")


def _hidden(access: Access) -> NotFound:
    if access.token_given:
        return NotFound(
            f"{access.page} does not exist, or is private and the token that was given may not "
            "read it"
        )
    return NotFound(f"{access.page} does not exist, or is private: then {access.advice}")


def _with_delay(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The hub tells how long to wait in a header of its own."""
    limit = parse_ratelimit_headers(headers)
    if limit is None or limit.remaining or "retry-after" in headers:
        return headers
    return {**headers, "retry-after": str(limit.reset_in_seconds)}
