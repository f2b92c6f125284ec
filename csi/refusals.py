"""Errors as gRPC statuses, which kubelet writes into a pod's events word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import grpc

from modelcache import errors

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

# The first that fits counts, so the narrow stand before the wide. See the CSI specification's
# error scheme: "aborted" means that the same call is being worked on already.
STATUSES: Final[tuple[tuple[type[errors.ModelcacheError], grpc.StatusCode], ...]] = (
    (errors.NotWarmYet, grpc.StatusCode.ABORTED),
    (errors.NotInStore, grpc.StatusCode.NOT_FOUND),
    (errors.UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.SourceUnavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NoCredentials, grpc.StatusCode.UNAUTHENTICATED),
    (errors.SourceRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.CorruptData, grpc.StatusCode.DATA_LOSS),
    (errors.StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.VolumeConflict, grpc.StatusCode.ALREADY_EXISTS),
)


def status_for(error: errors.ModelcacheError) -> grpc.StatusCode:
    """The status of an error's family."""
    found = (status for family, status in STATUSES if isinstance(error, family))
    return next(found, grpc.StatusCode.INTERNAL)


def answering(
    serve: Callable[[_Request, Any], _Answer],
) -> Callable[[_Request, Any], _Answer]:
    """A method whose errors are answered, each with its one line."""

    def answer(request: _Request, context: Any) -> _Answer:  # noqa: ANN401 - grpc has no types
        try:
            return serve(request, context)
        except errors.ModelcacheError as error:
            _abort(context, error)

    return answer


def _abort(context: Any, error: errors.ModelcacheError) -> NoReturn:  # noqa: ANN401
    context.abort(status_for(error), error.message)
    raise AssertionError("unreachable: abort raises")
