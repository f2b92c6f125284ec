"""The application behind both faces: what can be asked, and what is answered.

It decides nothing: each route calls one method of the daemon. Who may call what is the guard's.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

import modelcache
from modelcache.agent.daemon import Daemon
from modelcache.faces.http import refusals
from modelcache.faces.http.contents import contents_routes
from modelcache.faces.http.docs_page import render
from modelcache.faces.http.estimates import estimate_routes
from modelcache.faces.http.memory import memory_routes
from modelcache.faces.http.models import models_routes
from modelcache.faces.http.nodes import node_routes, probe_routes
from modelcache.faces.http.schemas import Refusal
from modelcache.faces.http.streaming import Closing
from modelcache.faces.http.volumes import volumes_routes

_ABOUT = """The control plane of a node's agent. It brings models to the node and keeps them there;
weights pass through it only to loaders that ask. Times are seconds, sizes bytes. Over the Unix
socket everything can be asked; over TCP changes need the agent's bearer token.
"""
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def create_app(daemon: Daemon, closing: Closing) -> FastAPI:
    """The application. closing: ends its streams."""
    app = FastAPI(
        title="modelcache agent",
        version=modelcache.__version__,
        description=_ABOUT,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": Refusal}, "5XX": {"model": Refusal}},
    )
    refusals.install(app)
    for routes in (
        contents_routes(daemon),
        memory_routes(daemon),
        models_routes(daemon, closing),
        estimate_routes(daemon),
        volumes_routes(daemon),
        node_routes(daemon, closing),
    ):
        app.include_router(routes, prefix="/v1")
    app.include_router(probe_routes(daemon))
    app.include_router(_docs(app))
    return app


def _docs(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/docs", response_class=HTMLResponse)
    def docs() -> HTMLResponse:
        """The API for people: one page that needs nothing from elsewhere."""
        return HTMLResponse(
            render(app.openapi()), headers={"Content-Security-Policy": _PAGE_POLICY}
        )

    return router
