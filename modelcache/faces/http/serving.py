"""Both faces on their sockets, in one event loop: the Unix socket, and TCP where it is wanted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import ASGIApp

from modelcache.faces.answering import Server, configuration
from modelcache.faces.http.streaming import Closing

KEEP_ALIVE_S: Final = 30
POLL_S: Final = 0.02


@asynccontextmanager
async def serving(
    faces: Sequence[tuple[ASGIApp, socket.socket]], closing: Closing
) -> AsyncIterator[None]:
    """Answer on these sockets while entered; at the end, finish what is being answered."""
    servers = [
        Server(configuration(app, http="h11", keep_alive_s=KEEP_ALIVE_S)) for app, _ in faces
    ]
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
