"""What the webhook can be asked over HTTPS: `/mutate`, probes and metrics.

Plain Starlette: the API server is the only client, and validates what it sends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from modelcache.errors import UsageError
from modelcache.faces.webhook.review import Outcome, Reviewer

BODY_BYTES_MAX: Final = 3 << 20  # etcd takes 1.5 MiB by default; a review carries a little more
BODY_S: Final = 10.0  # an API server waits no longer for the answer
INVALID: Final = "invalid"
BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Of one webhook, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "modelcache_webhook_requests",
            "Reviews, by how they ended.",
            ["result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "modelcache_webhook_request_seconds",
            "Time from a review's last byte to its answer.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.certificate_end = Gauge(
            "modelcache_webhook_certificate_end_timestamp_seconds",
            "When the certificate ends, in Unix time.",
            registry=self.registry,
        )
        ProcessCollector(namespace="modelcache", registry=self.registry)
        for outcome in (*Outcome, INVALID):
            self.requests.labels(outcome)


def create_app(
    reviewer: Reviewer, metrics: Metrics, not_ready: Callable[[], str | None]
) -> Starlette:
    """The application. not_ready: why nothing should be sent here, if so."""

    async def mutate(request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            metrics.requests.labels(INVALID).inc()
            return body
        start_s = time.perf_counter()
        try:
            outcome, answer = reviewer.answer(body)
        except UsageError as error:
            metrics.requests.labels(INVALID).inc()
            return PlainTextResponse(error.message, 400)
        metrics.requests.labels(outcome).inc()
        metrics.seconds.observe(time.perf_counter() - start_s)
        return JSONResponse(answer)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        reason = not_ready()
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    async def show(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/mutate", mutate, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show),
        ]
    )


async def _body(request: Request) -> bytes | Response:
    """A body of at most BODY_BYTES_MAX within BODY_S, or an answer that says no."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > BODY_BYTES_MAX:
        return _too_large()
    parts: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size_bytes += len(part)
                if size_bytes > BODY_BYTES_MAX:
                    return _too_large()
                parts.append(part)
    except (TimeoutError, ClientDisconnect):
        return PlainTextResponse("the body did not come", 408, {"Connection": "close"})
    return b"".join(parts)


def _too_large() -> Response:
    return PlainTextResponse(
        f"a body has at most {BODY_BYTES_MAX} bytes", 413, {"Connection": "close"}
    )
