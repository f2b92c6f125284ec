"""What our HTTP servers have in common: uvicorn, quiet, bounded, and ended by who runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import uvicorn
from starlette.types import ASGIApp

CONNECTIONS_MAX: Final = 512  # of each server; more are answered 503
HEAD_BYTES_MAX: Final = 32 << 10
LAST_ANSWERS_S: Final = 5  # for answers under way when it ends


class Server(uvicorn.Server):
    """One that leaves signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


def configuration(
    app: ASGIApp, *, http: Literal["h11"] | type[asyncio.Protocol], keep_alive_s: int
) -> uvicorn.Config:
    """http: what speaks on a connection. keep_alive_s: how long an idle one is kept."""
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )
