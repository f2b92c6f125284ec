"""What is asked without TLS, on a port of its own: probes and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from modelcache.faces.scaler.metrics import ScalerMetrics


def create_plain_app(
    metrics: ScalerMetrics, not_ready: Callable[[], str | None], more: Sequence[BaseRoute] = ()
) -> Starlette:
    """The application. not_ready: why nothing should be sent here, if so."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        reason = not_ready()
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    async def show(_: Request) -> Response:
        text = await run_in_threadpool(generate_latest, metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show),
            *more,
        ]
    )
