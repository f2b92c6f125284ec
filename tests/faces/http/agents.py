"""An agent's faces for tests: real uvicorn on a real Unix socket and over TCP, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from modelcache.agent.daemon import Daemon
from modelcache.client import AgentClient
from modelcache.config import Settings
from modelcache.faces.http.serving import serving
from modelcache.main.wiring import Assembled, assembled

WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that is asked over both faces."""

    parts: Assembled
    socket: Path

    @property
    def daemon(self) -> Daemon:
        return self.parts.daemon

    @property
    def url(self) -> str:
        assert self.parts.tcp is not None
        return f"http://127.0.0.1:{self.parts.tcp[1]}"

    @contextmanager
    def unix(self) -> Iterator[httpx2.Client]:
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        with httpx2.Client(transport=transport, base_url="http://agent", timeout=WAIT_S) as client:
            yield client

    @contextmanager
    def tcp(self, token: str | None = None) -> Iterator[httpx2.Client]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx2.Client(
            base_url=self.url, headers=headers, timeout=WAIT_S, trust_env=False
        ) as client:
            yield client

    def client(self) -> AgentClient:
        return AgentClient(str(self.socket))


@contextmanager
def running_faces(settings: Settings, *, begin: bool = True) -> Iterator[Running]:
    """Both faces over a daemon, which works unless not `begin`."""
    started, ended = threading.Event(), threading.Event()
    with assembled(settings) as parts:

        async def serve() -> None:
            async with serving(parts.faces, parts.closing):
                started.set()
                await asyncio.to_thread(ended.wait)

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="faces")
        thread.start()
        try:
            assert started.wait(WAIT_S)
            if begin:
                parts.daemon.start()
            yield Running(parts, settings.agent.socket)
        finally:
            ended.set()
            thread.join(WAIT_S)
            parts.daemon.close()
