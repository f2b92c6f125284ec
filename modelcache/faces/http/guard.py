"""Who may do what over which face: in front of the application, and ignorant of it.

Over the Unix socket everything: its file's mode decides who can open it. Over TCP reading is open
(probes, metrics, schedulers), and changing needs a bearer token, or is not there at all where no
token is configured; volumes are never changed over it: they are mounts on this node. Bodies are
bounded before anything parses them.
"""

from __future__ import annotations

import hmac
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelcache.errors import InvalidConfig
from modelcache.faces.http.refusals import refusal

BODY_BYTES_MAX: Final = 64 << 10  # a ref has at most 8 KiB, and globs are short
TOKEN_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 4096
VOLUMES: Final = "/v1/volumes"
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


Stamp = tuple[int, int, int]


class Guard:
    """See the module."""

    def __init__(
        self, app: ASGIApp, *, changes: bool = True, token: TokenFile | None = None
    ) -> None:
        """changes: whether requests may change anything. token: what such a request must carry."""
        self._app = app
        self._changes = changes
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return  # no web sockets, and a lifespan is the daemon's
        answer = self._refused(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        left = BODY_BYTES_MAX
        started = False

        async def bounded() -> Message:
            """A body without a length ends, for the application, where it gets too large."""
            nonlocal left
            message: Message = {"type": "http.disconnect"} if left < 0 else await receive()
            left -= len(message.get("body", b""))
            return {"type": "http.disconnect"} if left < 0 else message

        async def sending(message: Message) -> None:
            nonlocal started
            if left >= 0 or started:
                started = True
                await send(message)

        await self._app(scope, bounded, sending)
        if not started:
            await _too_large()(scope, receive, send)

    def _refused(self, scope: Scope) -> ASGIApp | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["method"] not in _READING:
            if self._token is not None and scope["path"].startswith(VOLUMES):
                return refusal(
                    403, "local_only", "volumes are changed over the agent's Unix socket only"
                )
            if not self._changes:
                return refusal(
                    403,
                    "read_only_face",
                    "changes are taken over the agent's Unix socket only; set agent.tcp_token_file "
                    "to allow them over TCP",
                )
            if self._token is not None and not self._authorised(headers.get(b"authorization")):
                return refusal(
                    401,
                    "unauthorized",
                    "changes over TCP need the agent's token: Authorization: Bearer …",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            return _too_large()
        return None

    def _authorised(self, header: bytes | None) -> bool:
        scheme, _, given = (header or b"").partition(b" ")
        matches = self._token is None or self._token.matches(given.strip())
        return matches and scheme.lower() == b"bearer"


class TokenFile:
    """The token that changes over TCP need, from a file that may be replaced at any time."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidConfig naming the file, never its content."""
        self._path = path
        self._token, self._stamp = _read_token(path)

    def matches(self, given: bytes) -> bool:
        """Compared in constant time; a file that is unreadable for a moment changes nothing."""
        with suppress(InvalidConfig, OSError):
            if _stamp(self._path.stat()) != self._stamp:
                self._token, self._stamp = _read_token(self._path)
        return hmac.compare_digest(given, self._token)


def _read_token(path: Path) -> tuple[bytes, Stamp]:
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            token = file.read(TOKEN_BYTES_MAX + 1).strip()
    except OSError as error:
        raise InvalidConfig(f"agent.tcp_token_file {path}: {error.strerror}") from error
    if not TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX or len(token.split()) != 1:
        raise InvalidConfig(
            f"agent.tcp_token_file {path} must hold one word of at least {TOKEN_BYTES_MIN} bytes; "
            "write one with: openssl rand -hex 32"
        )
    return token, stamp


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _too_large() -> ASGIApp:
    return refusal(413, "too_large", f"a request's body has at most {BODY_BYTES_MAX} bytes")
