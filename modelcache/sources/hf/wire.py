"""Lets huggingface_hub ask through our own client: its URLs, pages and documents, our connections.

What the library sends for a source goes through that source's `Asker`. So proxies, trusted
certificates, timeouts, bounded documents and bounded retries are those of every other source, and
the token, which the library is never told, goes to the hub's own host alone. What else runs in this
process and uses huggingface_hub is left as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpx2
from huggingface_hub import get_session, is_offline_mode, set_client_factory
from huggingface_hub.utils import _http

from modelcache.errors import SourceRefused
from modelcache.sources.hf.access import Access
from modelcache.sources.hf.refusals import PASSING, refused
from modelcache.sources.web import answers
from modelcache.sources.web.address import parse_address
from modelcache.sources.web.asking import Asker

_current: ContextVar[httpx2.Client | None] = ContextVar("modelcache_hub", default=None)
_installing = threading.Lock()
# Of the connection, or about a body that has been read.
_ANSWERED: Final = frozenset({"content-length", "transfer-encoding", "connection"})


class _Shared(httpx2.Client):
    """What huggingface_hub takes for its client. before: the one that it would have."""

    def __init__(self, before: httpx2.Client) -> None:
        super().__init__(transport=httpx2.MockTransport(_unreachable), timeout=None)
        self._before = before

    def build_request(self, *what: Any, **how: Any) -> httpx2.Request:  # noqa: ANN401
        """With the headers and limits of whose request it is."""
        return (_current.get() or self._before).build_request(*what, **how)

    def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:  # noqa: ANN401
        """Through the source that asks, if one does."""
        return (_current.get() or self._before).send(request, **how)

    def close(self) -> None:
        """Close both."""
        super().close()
        self._before.close()


class _Transport(httpx2.BaseTransport):
    """One request of the library as one of ours."""

    def __init__(self, access: Access, asker: Asker) -> None:
        self._access = access
        self._asker = asker

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises our errors for what is worth repeating: it was repeated, and so often is enough.

        Other refusals are the library's to understand.
        """
        try:
            address = parse_address(str(request.url))
        except ValueError as error:
            raise SourceRefused(
                f"{self._access.endpoint} lists a page whose address cannot be used: {error}"
            ) from error
        accept = {"Accept": "application/json"}
        answer = self._asker.ask(request.method, address, accept, wants_body=True)
        if answer.status in PASSING:
            raise refused(self._access, "", answer.status, answer.headers)
        if answers.is_encoded(answer.headers):
            raise SourceRefused(f"{address} is sent compressed although that was not asked for")
        headers = {name: text for name, text in answer.headers.items() if name not in _ANSWERED}
        return httpx2.Response(answer.status, headers=headers, content=answer.body, request=request)


class Wire:
    """Carries the library's requests for one source."""

    def __init__(self, access: Access, asker: Asker) -> None:
        self._client = httpx2.Client(transport=_Transport(access, asker), trust_env=False)
        self._access = access

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """In this thread, until the end of the block, huggingface_hub asks through us.

        Raises SourceRefused where its user wants it offline.
        """
        if is_offline_mode():
            raise SourceRefused(
                f"{self._access.endpoint} is not asked: HF_HUB_OFFLINE is set (or "
                "TRANSFORMERS_OFFLINE); unset it to pull"
            )
        _install()
        token = _current.set(self._client)
        try:
            yield
        finally:
            _current.reset(token)


def _install() -> None:
    """Stand before the client that the library has; again where somebody has set another."""
    with _installing:
        if not isinstance(get_session(), _Shared):
            factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
            set_client_factory(lambda: _Shared(factory()))


def _unreachable(request: httpx2.Request) -> httpx2.Response:
    raise AssertionError(f"{type(request).__name__} passed `send` by")
