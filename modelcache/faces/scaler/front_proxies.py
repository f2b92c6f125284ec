"""How API servers show who they are, followed as it changes; and TLS that asks them for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from lightkube import Client
from lightkube.resources.core_v1 import ConfigMap

from modelcache.errors import InvalidConfig, SourceUnavailable
from modelcache.faces.kubernetes.informer import Informer
from modelcache.faces.logs import Log
from modelcache.faces.scaler.callers import (
    CONFIG_NAME,
    CONFIG_NAMESPACE,
    FrontProxy,
    front_proxy,
)
from modelcache.faces.scaler.metrics_api import PEER_CERTIFICATE
from modelcache.faces.webhook.serving import Connection
from modelcache.faces.webhook.tls import LiveContext, Pair

UNKNOWN: Final = f"ConfigMap {CONFIG_NAMESPACE}/{CONFIG_NAME} has not been read yet"


class FrontProxies:
    """See the module. Thread-safe."""

    def __init__(self, client: Client, log: Log) -> None:
        self._log = log
        self._now: FrontProxy | None = None
        self._why = UNKNOWN
        self._tell: Callable[[], None] = lambda: None
        self._objects: Informer[Any] = Informer(
            client,
            ConfigMap,
            namespace=CONFIG_NAMESPACE,
            fields={"metadata.name": CONFIG_NAME},
            changed=self._changed,
            gone=self._gone,
            log=log,
        )

    def start(self, tell: Callable[[], None]) -> None:
        """Begin. tell: called, in another thread, whenever something has changed."""
        self._tell = tell
        self._objects.start()

    def stop(self) -> None:
        """End."""
        self._objects.stop()

    def current(self) -> FrontProxy:
        """What holds now. Raises SourceUnavailable while nothing does."""
        found = self._now
        if found is None:
            raise SourceUnavailable(self._why)
        return found

    @property
    def authority(self) -> str:
        """PEM of who signs for API servers; empty while nobody is known."""
        return self._now.authority if self._now is not None else ""

    def _changed(self, item: ConfigMap) -> None:
        try:
            found = front_proxy(item.data or {})
        except InvalidConfig as error:
            self._forget(error.message)
            return
        self._now = found
        self._tell()

    def _gone(self, _: ConfigMap) -> None:
        self._forget(f"there is no ConfigMap {CONFIG_NAMESPACE}/{CONFIG_NAME}")

    def _forget(self, why: str) -> None:
        self._now, self._why = None, why
        self._log.warning("front_proxy_unknown", message=why)
        self._tell()


def asking_context(pair: Pair, authority: str) -> LiveContext:
    """TLS that lets everybody in, and checks the certificate of whoever shows one.

    One that this authority did not sign ends the connection; without one a caller stays nobody.
    Raises InvalidConfig.
    """
    live = LiveContext(pair)
    if authority:
        live.context.verify_mode = ssl.CERT_OPTIONAL
        live.context.load_verify_locations(cadata=authority)
    return live


class ShowingPeer(Connection):
    """A connection whose requests carry the certificate that its client has shown.

    uvicorn keeps it from applications. By the time a connection is made here TLS is done, so that
    what is there has been checked.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See the base class."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls is not None else None
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's
            await inner({**scope, PEER_CERTIFICATE: shown}, receive, send)

        self.app = app
