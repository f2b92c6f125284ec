"""One webhook from its first answer to its last.

After it was told to end it goes on answering for a moment, and says that it is not ready: Services
forget an endpoint a little after its pod was told to go, and a review that finds nobody means a
pod without its models.
"""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime

from modelcache.faces.logs import Log
from modelcache.faces.webhook.app import Metrics, create_app
from modelcache.faces.webhook.review import Reviewer
from modelcache.faces.webhook.serving import serving
from modelcache.faces.webhook.tls import Certificates, LiveContext, keep_fresh


class Webhook:
    """See the module."""

    def __init__(self, reviewer: Reviewer, source: Certificates, log: Log) -> None:
        """Have a certificate. Raises what the source does, and InvalidConfig."""
        self._source = source
        self._log = log
        self._live = LiveContext(source.current())
        self._leaving = False
        self._metrics = Metrics()
        self._app = create_app(reviewer, self._metrics, self.not_ready)

    def not_ready(self) -> str | None:
        """Why reviews should not be sent here, if so."""
        if self._leaving:
            return "leaving"
        return "the certificate has ended" if datetime.now(UTC) >= self._live.end else None

    async def run(self, listener: socket.socket, ending: asyncio.Event, linger_s: float) -> None:
        """Answer until `ending` is set, and `linger_s` longer."""
        self._show_end()
        async with serving(self._app, listener, self._live.context):
            port = listener.getsockname()[1]
            self._log.info("webhook_ready", port=port, certificate_end=self._live.end.isoformat())
            fresh = asyncio.create_task(
                keep_fresh(self._source, self._live, self._log, changed=self._show_end)
            )
            try:
                await ending.wait()
                self._leaving = True
                self._log.info("webhook_stopping", linger_s=linger_s)
                await asyncio.sleep(linger_s)
            finally:
                fresh.cancel()
        self._log.info("webhook_stopped")

    def _show_end(self) -> None:
        self._metrics.certificate_end.set(self._live.end.timestamp())
