"""Errors as answers: `{"error": {"code", "message"}}`, with a status for each family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from modelcache.errors import (
    BlobBusy,
    Cancelled,
    CorruptData,
    Forbidden,
    Leased,
    ModelcacheError,
    NotFound,
    NotInStore,
    SourceRefused,
    SourceUnavailable,
    StoreError,
    StoreFull,
    Throttled,
    UsageError,
    VolumeConflict,
)

# The first that fits counts, so the narrow stand before the wide.
STATUSES: Final[tuple[tuple[type[ModelcacheError], int], ...]] = (
    (NotInStore, 404),
    (UsageError, 400),
    (Throttled, 429),
    (SourceUnavailable, 503),
    (NotFound, 404),
    (Forbidden, 403),
    (SourceRefused, 502),
    (CorruptData, 502),
    (StoreFull, 507),
    (Leased, 409),
    (VolumeConflict, 409),
    (BlobBusy, 409),
    (Cancelled, 409),
    (StoreError, 500),
)
_CODES: Final = {404: "no_such_page", 405: "no_such_method", 413: "too_large"}
PROBLEMS_MAX: Final = 5  # of a request's fields, in one message


def status_for(error: ModelcacheError) -> int:
    """The HTTP status of an error's family."""
    return next((status for family, status in STATUSES if isinstance(error, family)), 500)


def refusal(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer that says no, and why."""
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Have everything that goes wrong answered in one form."""
    app.add_exception_handler(ModelcacheError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _bug)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ModelcacheError)  # noqa: S101 - as it is registered
    headers = {}
    if isinstance(error, SourceUnavailable) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return refusal(status_for(error), error.code, error.message, headers)


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """Say which fields are wrong, and never what was in them: a ref may be a credential."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as it is registered
    found = [
        f"{'.'.join(str(part) for part in each['loc'][1:]) or 'body'}: {each['msg']}"
        for each in error.errors()[:PROBLEMS_MAX]
    ]
    return refusal(400, UsageError.code, "; ".join(found)[:1000])


async def _of_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - as it is registered
    code = _CODES.get(error.status_code, "http")
    return refusal(error.status_code, code, f"{error.detail}; see /docs", error.headers)


async def _bug(_: Request, error: Exception) -> JSONResponse:
    """The server logs where; a client learns only that."""
    return refusal(500, "bug", f"this is a bug: {type(error).__name__}; the agent's log has more")
