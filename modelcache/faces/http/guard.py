"""Who may do what over which face: in front of the application, and ignorant of it.

Over the Unix socket everything: its file's mode decides who can open it. Over TCP reading is open
(probes, metrics, schedulers), and changing needs a bearer token, or is not there at all where no
token is configured; volumes are never changed over it: they are mounts on this node. Bodies are
bounded before anything parses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelcache.config.tokens import TokenFile
from modelcache.faces.http.refusals import refusal

BODY_BYTES_MAX: Final = 64 << 10  # a ref has at most 8 KiB, and globs are short
VOLUMES: Final = "/v1/volumes"
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


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


def token_file(path: Path) -> TokenFile:
    """The token that changes over TCP need. Raises InvalidConfig."""
    return TokenFile(str(path.expanduser()), "agent.tcp_token_file", word=True)


def _too_large() -> ASGIApp:
    return refusal(413, "too_large", f"a request's body has at most {BODY_BYTES_MAX} bytes")
