"""A registry as larger ones are: in front of a real one, with layers in a store elsewhere.

The front passes requests on, and answers those for layers with a redirect to a signed address on
another port. The store serves the real registry's bytes; it fails a test in which a credential of
the registry reaches it.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from typing import Self

from tests.servers.docker_registry import DockerRegistry
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile

_BLOB = re.compile(r"/v2/.*/blobs/(sha256:[0-9a-f]{64})")


class RegistryFront:
    """Use as a context manager; leaving it checks what the store has seen."""

    def __init__(self, registry: DockerRegistry) -> None:
        self._registry = registry
        self.front = ScriptedServer()
        self.store = ScriptedServer()
        self.front.answers["*"] = self._answer
        self.store.answers["*"] = self._serve
        self.redirects = True
        self.ranges = True
        self.signature = 1
        """The only one that the store accepts."""
        self.alter: Callable[[bytes], bytes] = bytes
        """What becomes of a layer's bytes on the way."""

    @property
    def name(self) -> str:
        """host:port of the front."""
        return f"127.0.0.1:{self.front.port}"

    def __enter__(self) -> Self:
        self.front.__enter__()
        self.store.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.front.__exit__()
        self.store.__exit__()
        for asked in self.store.asked:
            assert "authorization" not in asked.headers

    def _answer(self, asked: Asked) -> Reply:
        match = _BLOB.fullmatch(asked.path)
        if match is None or asked.method not in {"GET", "HEAD"}:
            return self._pass_on(asked)
        whole = {name: value for name, value in asked.headers.items() if name != "range"}
        if self._pass_on(Asked("HEAD", asked.path, whole)).status != 200:
            return self._pass_on(asked)
        if self.redirects:
            target = self.store.url(f"/{match[1]}?signature={self.signature}")
            return Reply(307, {"Location": target})
        return self._content(match[1], asked)

    def _serve(self, asked: Asked) -> Reply:
        path, _, signature = asked.path.partition("?signature=")
        if signature != str(self.signature):
            return Reply(403, {"Content-Type": "application/xml"}, b"<Error>AccessDenied</Error>")
        return self._content(path.removeprefix("/"), asked)

    def _content(self, digest: str, asked: Asked) -> Reply:
        content = self.alter(self._registry.blob_path(digest).read_bytes())
        return StaticFile(content, ranges=self.ranges)(asked)

    def _pass_on(self, asked: Asked) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self._registry.port, timeout=10)
        try:
            headers = {name: value for name, value in asked.headers.items() if name != "connection"}
            connection.request(asked.method, asked.path, asked.body or None, headers)
            response = connection.getresponse()
            body = response.read()
            kept = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}
            }
            length = int(response.headers.get("Content-Length", len(body)))
            return Reply(response.status, kept, body, -1 if body else length)
        finally:
            connection.close()
