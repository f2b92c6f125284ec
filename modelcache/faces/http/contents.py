"""The route that gives bytes of models to loaders of the node; see `agent.contents`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from modelcache.agent.daemon import Daemon
from modelcache.domain.ranges import ByteRange
from modelcache.errors import UsageError
from modelcache.faces.http.models import ModelName
from modelcache.faces.http.schemas import BytesRequest

STAMP = "Modelcache-Stamp"


def contents_routes(daemon: Daemon) -> APIRouter:
    """The routes below `/models/{model_id}/bytes`."""
    router = APIRouter(prefix="/models/{model_id}/bytes", tags=["models"])
    contents = daemon.contents

    @router.post("", response_class=Response)
    def read(model_id: ModelName, request: BytesRequest) -> Response:
        """Bytes of one of the model's files, also of one that is still coming.

        What is missing is fetched before all else; `not_yet` says that it did not come in time. The
        header `Modelcache-Stamp` becomes another one when a file turned out not to be what its
        origin says: what was read before that has to be read again.
        """
        if request.end < request.start:
            raise UsageError("a range ends before it begins")
        span = ByteRange(request.start, request.end)
        data, stamp = contents.read(model_id, request.path, span, request.wait_s)
        return Response(
            memoryview(data), media_type="application/octet-stream", headers={STAMP: stamp}
        )

    return router
