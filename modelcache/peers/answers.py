"""How the peer plane answers: heads, and errors as their askers will understand them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from modelcache.domain.members import NodeId, is_node_id
from modelcache.domain.ranges import ByteRange
from modelcache.domain.retrying import retry_seconds
from modelcache.errors import (
    CorruptData,
    Draining,
    Forbidden,
    Misdirected,
    ModelcacheError,
    NoCredentials,
    NotFound,
    NotHeld,
    NotYet,
    SourceRefused,
    SourceUnavailable,
    Throttled,
    UsageError,
)
from modelcache.peers.wire import build_head

MESSAGE_CHARACTERS_MAX: Final = 500
HASHES_MAX: Final = 256  # of an answer: 8 KiB of its head; askers take up to 8 chunks at once
RETRY_AFTER_S_MAX: Final = 60.0  # a peer cannot send us away for longer
_STATUSES: Final = (  # the first that fits
    (NotHeld, HTTPStatus.NOT_FOUND),
    (NotFound, HTTPStatus.NOT_FOUND),
    (NoCredentials, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (UsageError, HTTPStatus.BAD_REQUEST),
    (CorruptData, HTTPStatus.BAD_REQUEST),
    (Misdirected, HTTPStatus.MISDIRECTED_REQUEST),
    (NotYet, HTTPStatus.SERVICE_UNAVAILABLE),
    (Throttled, HTTPStatus.SERVICE_UNAVAILABLE),
    (Draining, HTTPStatus.SERVICE_UNAVAILABLE),
    (SourceRefused, HTTPStatus.UNPROCESSABLE_ENTITY),
    (SourceUnavailable, HTTPStatus.BAD_GATEWAY),
)
Fields = tuple[tuple[str, str], ...]


def answer_head(status: HTTPStatus, size_bytes: int, fields: Fields, *, keep: bool) -> bytes:
    """The head of an answer with a body of so many bytes."""
    more = () if keep else (("Connection", "close"),)
    length = ("Content-Length", str(size_bytes))
    return build_head(f"HTTP/1.1 {status.value} {status.phrase}", (length, *fields, *more))


def content_range(span: ByteRange, total_bytes: int) -> str:
    """The value of Content-Range."""
    return f"bytes {span.start}-{span.end - 1}/{total_bytes}"


def joined_hashes(hashes: tuple[bytes, ...]) -> str:
    """The value of X-Modelcache-Xxh3; empty where there are none to tell, or too many."""
    return ",".join(each.hex() for each in hashes) if len(hashes) <= HASHES_MAX else ""


def refusal_of(error: ModelcacheError) -> tuple[HTTPStatus, bytes, Fields]:
    """Status, body and fields that tell a peer of an error."""
    status = next(
        (status for family, status in _STATUSES if isinstance(error, family)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    internal = status == HTTPStatus.INTERNAL_SERVER_ERROR  # its message is for this node's people
    message = "this node's store has failed" if internal else error.message
    said = {"code": error.code, "message": message[:MESSAGE_CHARACTERS_MAX]}
    if isinstance(error, Misdirected):
        said["node"] = error.node
    fields = [("Content-Type", "application/json")]
    after_s = getattr(error, "retry_after_s", None)
    if after_s is not None:
        fields.append(("Retry-After", str(math.ceil(after_s))))
    return status, json.dumps({"error": said}).encode("ascii"), tuple(fields)


def error_of(where: str, status: int, headers: Mapping[str, str], body: bytes) -> ModelcacheError:
    """The inverse of `refusal_of`, for whoever has asked.

    where: the peer, for messages. What it says is shown only as far as it can be harmless.
    """
    code, message = _said(body)
    text = f"{where}: {message}" if message else f"{where} answered {status}"
    if status == HTTPStatus.NOT_FOUND:
        return NotHeld(text)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Forbidden(text)
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        # One that is draining is as good as gone.
        waits = {NotYet.code: NotYet, Draining.code: SourceUnavailable}.get(code, Throttled)
        return waits(text, retry_after_s=_retry_after_s(headers))
    if status == HTTPStatus.MISDIRECTED_REQUEST:
        return SourceUnavailable(text)  # another node has that address now: announcing finds it
    refused = 400 <= status < 500  # noqa: PLR2004 - client errors
    return SourceRefused(text) if refused else SourceUnavailable(text)


def name_in(body: bytes) -> NodeId:
    """Who answers that it was asked under another name. Raises CorruptData."""
    try:
        node = json.loads(body)["error"]["node"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptData("the peer does not say its name") from error
    if not isinstance(node, str) or not is_node_id(node):
        raise CorruptData("the peer does not say its name")
    return NodeId(node)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    return retry_seconds(headers.get("retry-after", ""), RETRY_AFTER_S_MAX)


def _said(body: bytes) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    shown = message[:MESSAGE_CHARACTERS_MAX]
    return code, shown if shown.isprintable() else ascii(shown)[1:-1]
