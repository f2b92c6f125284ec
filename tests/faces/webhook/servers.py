"""The webhook in a thread of its own, answering over HTTPS as it does in a cluster."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from modelcache.faces.webhook.life import Webhook
from modelcache.faces.webhook.mutation import Choices
from modelcache.faces.webhook.review import Reviewer
from modelcache.faces.webhook.serving import bind
from modelcache.faces.webhook.tls import Certificates
from modelcache.faces.webhook.warmth import Warmth
from tests.faces.webhook.support import Known, Remembered


@dataclass(frozen=True, slots=True)
class Hook:
    """One that answers."""

    port: int
    log: Remembered
    made: Webhook
    stopped: threading.Event
    thread: threading.Thread

    def stop(self) -> None:
        """Have it end, and wait for that."""
        self.stopped.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def shown(self, *, trusting: str) -> ssl.SSLSocket:
        """A new connection, for somebody who trusts this PEM. Raises SSLError."""
        context = ssl.create_default_context(cadata=trusting)
        return context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), timeout=5),
            server_hostname="127.0.0.1",
        )

    def client(self, ca_file: Path) -> httpx2.Client:
        context = ssl.create_default_context(cafile=str(ca_file))
        return httpx2.Client(base_url=self.url, verify=context, trust_env=False)


@contextmanager
def hook(
    source: Certificates,
    warmth: Warmth | None = None,
    *,
    gate: bool = False,
    linger_s: float = 0.0,
    ending: threading.Event | None = None,
) -> Iterator[Hook]:
    """A webhook that answers while entered. ending: when it is told to end; else at the end."""
    log = Remembered()
    made = Webhook(Reviewer(Choices(gate=gate), warmth or Known(), log), source, log)
    stop = ending or threading.Event()

    async def run(listener: socket.socket) -> None:
        told = asyncio.Event()
        waiting = asyncio.create_task(asyncio.to_thread(stop.wait))
        waiting.add_done_callback(lambda _: told.set())
        await made.run(listener, told, linger_s)

    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(run(listener)))
        thread.start()
        running = Hook(listener.getsockname()[1], log, made, stop, thread)
        try:
            yield running
        finally:
            running.stop()
