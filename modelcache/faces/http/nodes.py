"""Routes about the node: its status, events, peers, draining; probes and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import modelcache
from modelcache.agent.daemon import Daemon
from modelcache.agent.events import EventKind
from modelcache.faces.http.metrics import registry_for
from modelcache.faces.http.models import wanted
from modelcache.faces.http.schemas import (
    Drained,
    Health,
    NodeStatus,
    PeersTable,
    Readiness,
    Resumed,
    StoreInfo,
)
from modelcache.faces.http.streaming import Closing, Filter, position, stream

_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def node_routes(daemon: Daemon, closing: Closing) -> APIRouter:
    """The routes about the node below `/v1`."""
    router = APIRouter(tags=["node"])
    node = daemon.node

    @router.get("/status")
    def status() -> NodeStatus:
        """The agent at one glance: its store, and what is wanted."""
        usage, reasons = daemon.usage(), daemon.not_ready()
        return NodeStatus(
            node=node.name,
            version=modelcache.__version__,
            started_at_s=daemon.started_at_s,
            ready=not reasons,
            reasons=reasons,
            draining=node.draining,
            warnings=daemon.warnings(),
            store=StoreInfo(
                path=str(daemon.settings.store.path),
                blobs_bytes=usage.blobs_bytes,
                partial_bytes=usage.partial_bytes,
                quota_bytes=usage.quota_bytes,
                free_bytes=usage.free_bytes,
            ),
            wanted=[wanted(each) for each in node.statuses()],
        )

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(
        kinds: Annotated[list[EventKind] | None, Query(description="Only these.")] = None,
        model: Annotated[str, Query(max_length=64, description="Only of this wanted id.")] = "",
        history: Annotated[bool, Query(description="Begin with what is remembered.")] = False,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        """What happens, as server-sent events; `Last-Event-ID` goes on where a stream broke.

        An event `lost` says that something before it could not be told any more.
        """
        node.events.check_room()  # once a stream has begun nothing else can be answered
        start, lost = position(node.events, last_event_id, history=history)
        chosen = Filter(frozenset(kinds or ()), model)
        return StreamingResponse(
            stream(node.events, closing, chosen, start, lost=lost),
            media_type="text/event-stream",
            headers=_STREAM_HEADERS,
        )

    @router.get("/peers")
    def peers() -> PeersTable:
        """The other nodes of the cell."""
        known = daemon.neighbours
        return PeersTable(enabled=known is not None, peers=known.peers() if known else [])

    @router.post("/drain")
    def drain(
        timeout_s: Annotated[
            float | None, Query(ge=0, le=3600, description="`agent.shutdown_s` without.")
        ] = None,
    ) -> Drained:
        """Take nothing new, stop what is under way, and let peers have what they are being sent.

        For a node that is about to go; `/v1/resume` or a restart of the agent ends it. Answers when
        it is over.
        """
        return Drained(complete=daemon.drain(timeout_s))

    @router.post("/resume")
    def resume() -> Resumed:
        """Take back a drain, over or under way, and go on with what is wanted. Idempotent."""
        return Resumed(resumed=daemon.resume())

    return router


def probe_routes(daemon: Daemon) -> APIRouter:
    """Probes of an orchestrator, and metrics."""
    router = APIRouter(tags=["probes"])
    registry = registry_for(daemon)

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        """It lives, and answers; 503 when nothing but a restart will help."""
        alive = daemon.node.alive
        return JSONResponse(Health(alive=alive).model_dump(), 200 if alive else 503)

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """Whether it takes work: 200, or 503 and why not."""
        reasons = daemon.not_ready()
        body = Readiness(ready=not reasons, reasons=reasons)
        return JSONResponse(body.model_dump(), 503 if reasons else 200)

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
