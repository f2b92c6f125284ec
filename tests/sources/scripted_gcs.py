"""Google's JSON API, token service and metadata server on loopback, as strict as Google's own.

For what fake-gcs-server cannot be made to do: it checks no credentials and refuses nothing. Objects
are served by generation and in ranges; a test may close the bucket, end tokens, and answer for it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

from tests.sources.scripted import Asked, Reply, ScriptedServer

BUCKET = "bkt"
OBJECTS = f"/storage/v1/b/{BUCKET}/o"
SECRET = "ya29.secret-token-number-"  # noqa: S105 - of a server that lives for a test


@dataclass(frozen=True)
class Stored:
    """One object; more: what else its metadata says."""

    content: bytes
    generation: int = 1
    more: dict[str, str] = field(default_factory=dict)

    def metadata(self, name: str) -> dict[str, Any]:
        crc = google_crc32c.value(self.content).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "name": name,
            "size": str(len(self.content)),
            "generation": str(self.generation),
            "crc32c": base64.b64encode(crc).decode(),
            "md5Hash": base64.b64encode(md5(self.content, usedforsecurity=False).digest()).decode(),
        } | self.more


def refused(status: int, reason: str, message: str = "no", **headers: str) -> Reply:
    """An error document of Google's form."""
    errors = [{"domain": "global", "reason": reason, "message": message}]
    document = {"error": {"code": status, "message": message, "errors": errors}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, json.dumps(document).encode())


class ScriptedGcs(ScriptedServer):
    """answer: may reply to a request instead. closed: a token is wanted. page: objects a page."""

    def __init__(self) -> None:
        super().__init__()
        self._server.RequestHandlerClass = _handler(self)
        self.objects: dict[str, Stored] = {}
        self.answer: Callable[[Asked], Reply | None] = lambda _: None
        self.page = 1000
        self.closed = False
        self.lifetime_s = 3600
        self.issued = 0
        self.ended: set[str] = set()
        self.grants: list[str] = []
        self.token_reply: Reply | None = None

    @property
    def endpoint(self) -> str:
        return self.url("").rstrip("/")

    def end_tokens(self) -> None:
        """From now on only tokens that are yet to be issued are good."""
        self.ended.update(f"{SECRET}{number}" for number in range(1, self.issued + 1))

    def reads(self) -> list[Asked]:
        """The requests for content."""
        return [asked for asked in self.asked if "alt=media" in asked.path]

    def respond(self, asked: Asked, body: bytes) -> Reply:
        """What a request gets."""
        path = urlsplit(asked.path).path
        if path in {"/", "/token", "/sts"} or path.startswith("/computeMetadata"):
            return self._token(path, body)
        found = self.answer(asked)
        if found is not None:
            return found
        if self.closed and (refusal := self._unauthorized(asked)) is not None:
            return refusal
        query = {name: values[0] for name, values in parse_qs(urlsplit(asked.path).query).items()}
        if path == OBJECTS:
            return self._list(query)
        if path.startswith(f"{OBJECTS}/"):
            return self._object(unquote(path.removeprefix(f"{OBJECTS}/")), query, asked)
        return refused(404, "notFound", "The specified bucket does not exist.")

    def _unauthorized(self, asked: Asked) -> Reply | None:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            return refused(401, "required", "Anonymous caller does not have access.")
        good = token.startswith(SECRET) and token not in self.ended
        return None if good else refused(401, "authError", f"Invalid Credentials: {token}")

    def _token(self, path: str, body: bytes) -> Reply:
        flavor = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
        if path == "/" or (path.startswith("/computeMetadata") and not path.endswith("/token")):
            account = {"email": "node@project.example", "scopes": ["all"], "aliases": ["default"]}
            return Reply(200, flavor, json.dumps(account).encode())
        self.grants.append(f"{path} {body.decode()}")
        if self.token_reply is not None:
            return self.token_reply
        self.issued += 1
        token = {
            "access_token": f"{SECRET}{self.issued}",
            "expires_in": self.lifetime_s,
            "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }
        return Reply(200, flavor, json.dumps(token).encode())

    def _list(self, query: dict[str, str]) -> Reply:
        names = sorted(name for name in self.objects if name.startswith(query.get("prefix", "")))
        start = int(query.get("pageToken", "0"))
        found = names[start : start + self.page]
        listing: dict[str, Any] = {"items": [self.objects[name].metadata(name) for name in found]}
        if start + self.page < len(names):
            listing["nextPageToken"] = str(start + self.page)
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())

    def _object(self, name: str, query: dict[str, str], asked: Asked) -> Reply:
        stored = self.objects.get(name)
        if stored is None or query.get("generation", str(stored.generation)) != str(
            stored.generation
        ):
            return refused(404, "notFound", f"No such object: {BUCKET}/{quote(name)}")
        if query.get("alt") != "media":
            return Reply(200, {}, json.dumps(stored.metadata(name)).encode())
        headers = {"X-Goog-Generation": str(stored.generation)}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        if span is None:
            return Reply(200, headers, stored.content)
        first, last = int(span[1]), min(int(span[2]), len(stored.content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(stored.content)}"
        return Reply(206, headers, stored.content[first : last + 1])

    def __enter__(self) -> Self:
        super().__enter__()
        return self


def _handler(server: ScriptedGcs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            asked = Asked(self.command, self.path, headers)
            server.asked.append(asked)
            reply = server.respond(asked, body)
            lines = [f"HTTP/1.1 {reply.status} Whatever", f"Content-Length: {len(reply.body)}"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + reply.body)

        do_GET = do_POST = _answer  # noqa: N815 - the library's naming

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
