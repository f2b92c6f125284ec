"""What KEDA's port shows, and whom it lets in, while the certificates of both change.

gRPC asks for every handshake what it is to show, from a thread of its own; connections that are
open keep what they were opened with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc

from modelcache.faces.logs import Log
from modelcache.faces.webhook.tls import Certificates, Pair, check, keep_fresh


class LiveCredentials:
    """A gRPC server's credentials. `use` is called by one thread at a time."""

    def __init__(self, pair: Pair) -> None:
        """Whether clients are asked for a certificate is decided here, for ever.

        Raises InvalidConfig where anything is not what it should be.
        """
        self._pair = pair
        self.end: datetime = check(pair)
        self._now = _configuration(pair)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._now,
            lambda: self._now,
            require_client_authentication=bool(pair.authority),
        )

    def use(self, pair: Pair) -> bool:
        """Show this from now on; whether that is something new. Raises InvalidConfig."""
        if pair == self._pair:
            return False
        self.end = check(pair)
        self._pair, self._now = pair, _configuration(pair)
        return True


@dataclass(frozen=True, slots=True)
class KedaFace:
    """Where KEDA asks. source: of the certificate; None answers without TLS."""

    address: tuple[str, int]
    source: Certificates | None = None


@asynccontextmanager
async def credentials_of(
    face: KedaFace, log: Log, changed: Callable[[datetime], None]
) -> AsyncIterator[Any]:
    """A server's credentials, followed while entered; None without TLS. changed: told of each end.

    Raises InvalidConfig.
    """
    if face.source is None:
        yield None
        return
    live = LiveCredentials(await asyncio.to_thread(face.source.current))

    def tell() -> None:
        changed(live.end)

    tell()
    task = asyncio.create_task(keep_fresh(face.source, live, log, changed=tell))
    try:
        yield live.credentials
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _configuration(pair: Pair) -> Any:  # noqa: ANN401 - grpc has no types
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.certificate)], pair.authority or None
    )
