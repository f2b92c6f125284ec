"""What is asked without TLS, on a port of its own: probes, metrics, and by kube-scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from modelcache.errors import SourceUnavailable, UsageError
from modelcache.faces.scaler.metrics import ScalerMetrics
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.prioritizing import BODY_BYTES_MAX, prioritized

FACE: Final = "scheduler"
BODY_S: Final = 5.0  # a scheduler waits no longer for the answer by default


def create_plain_app(
    outlooks: Outlooks, metrics: ScalerMetrics, not_ready: Callable[[], str | None]
) -> Starlette:
    """The application. not_ready: why nothing should be sent here, if so."""

    async def prioritize(request: Request) -> Response:
        start_s = perf_counter()
        answer = await _answer(request, outlooks)
        metrics.requests.labels(FACE, str(answer.status_code)).inc()
        metrics.seconds.labels(FACE).observe(perf_counter() - start_s)
        return answer

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
            Route("/prioritize", prioritize, methods=["POST"]),
        ]
    )


async def _answer(request: Request, outlooks: Outlooks) -> Response:
    parts: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size_bytes += len(part)
                if size_bytes > BODY_BYTES_MAX:
                    return PlainTextResponse(f"a body has at most {BODY_BYTES_MAX} bytes", 413)
                parts.append(part)
        reports = outlooks.view().reports
        return JSONResponse(await run_in_threadpool(prioritized, b"".join(parts), reports))
    except (TimeoutError, ClientDisconnect):
        return PlainTextResponse("the body did not come", 408, {"Connection": "close"})
    except UsageError as error:
        return PlainTextResponse(error.message, 400)
    except SourceUnavailable as error:  # a scheduler that may ignore us does
        return PlainTextResponse(error.message, 503)
