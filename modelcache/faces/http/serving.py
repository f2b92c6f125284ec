"""Both faces on their sockets, in one event loop: the Unix socket, and TCP where it is wanted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from modelcache.faces.http.streaming import Closing

CONNECTIONS_MAX: Final = 512  # of each face; more are answered 503
HEAD_BYTES_MAX: Final = 32 << 10
KEEP_ALIVE_S: Final = 30
LAST_ANSWERS_S: Final = 5  # for answers under way when the agent ends
POLL_S: Final = 0.02


class _Server(uvicorn.Server):
    """One that leaves signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


@asynccontextmanager
async def serving(
    faces: Sequence[tuple[ASGIApp, socket.socket]], closing: Closing
) -> AsyncIterator[None]:
    """Answer on these sockets while entered; at the end, finish what is being answered."""
    servers = [_Server(_configuration(app)) for app, _ in faces]
    sockets = [listener for _, listener in faces]
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener]))
        for server, listener in zip(servers, sockets, strict=True)
    ]
    try:
        while not all(server.started for server in servers):
            if any(task.done() for task in tasks):
                break
            await asyncio.sleep(POLL_S)
        yield
    finally:
        closing.close()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)


def _configuration(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )
