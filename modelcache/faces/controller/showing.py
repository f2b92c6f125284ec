"""What a controller can be asked over HTTP: probes and metrics, in a thread beside its loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelcache.faces.answering import Server, configuration
from modelcache.faces.controller.health import Health

KEEP_ALIVE_S: Final = 30


def create_app(health: Health) -> Starlette:
    """The application."""

    def probe(reason: Callable[[], str | None]) -> Callable[[Request], Response]:
        def answer(_: Request) -> Response:
            why = reason()
            return PlainTextResponse(why or "ok", 503 if why else 200)

        return answer

    def show(_: Request) -> Response:
        return Response(generate_latest(health.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", probe(health.not_alive)),
            Route("/readyz", probe(health.not_ready)),
            Route("/metrics", show),
        ]
    )


@contextmanager
def showing(health: Health, listener: socket.socket) -> Iterator[None]:
    """Answer while entered."""
    server = Server(configuration(create_app(health), http="h11", keep_alive_s=KEEP_ALIVE_S))
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="modelcache-probes", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
