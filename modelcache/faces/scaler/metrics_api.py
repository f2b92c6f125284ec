"""`external.metrics.k8s.io/v1beta1`: what a HorizontalPodAutoscaler asks, behind the API server.

    GET …/v1beta1                                       what metrics there are
    GET …/v1beta1/namespaces/NS/METRIC?labelSelector=…  one number

An autoscaler adds up all items that it is given, so there is exactly one, or an error. It does not
look at times either: a number that nobody can vouch for is answered with 503, upon which it does
not scale down. What is no number of ours, or is more than one, is the asker's to put right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelcache.errors import ModelcacheError, NotFound, SourceUnavailable, UsageError
from modelcache.faces.kubernetes.selectors import matches, parse_selector
from modelcache.faces.logs import Log
from modelcache.faces.scaler.allowing import Allowing, Deed
from modelcache.faces.scaler.callers import Caller, FrontProxy, Unauthenticated, caller
from modelcache.faces.scaler.metrics import ScalerMetrics
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.quantities import quantity
from modelcache.faces.scaler.series import NAMES, Series, series_of

GROUP: Final = "external.metrics.k8s.io"
VERSION: Final = "v1beta1"
ROOT: Final = f"/apis/{GROUP}/{VERSION}"
FACE: Final = "metrics"
NAMED_MAX: Final = 5  # of what matches, in a message
PEER_CERTIFICATE: Final = "modelcache.peer_certificate"
"""Of a request's scope: DER of what the client has shown, checked by TLS; or None."""


class Denied(ModelcacheError):
    """Who asks may not have it."""

    code = "denied"


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    reason: str


# By remedy, the narrowest first.
_REFUSALS: Final[tuple[tuple[type[ModelcacheError], _Refusal], ...]] = (
    (Unauthenticated, _Refusal(401, "Unauthorized")),
    (Denied, _Refusal(403, "Forbidden")),
    (NotFound, _Refusal(404, "NotFound")),
    (UsageError, _Refusal(400, "BadRequest")),
    (SourceUnavailable, _Refusal(503, "ServiceUnavailable")),
    (ModelcacheError, _Refusal(500, "InternalError")),
)


class MetricsApi:
    """See the module."""

    def __init__(
        self,
        outlooks: Outlooks,
        allowing: Allowing,
        metrics: ScalerMetrics,
        proxy: Callable[[], FrontProxy],
        log: Log,
    ) -> None:
        """proxy: how the API server shows who it is, now. Raises SourceUnavailable if unknown."""
        self._outlooks = outlooks
        self._allowing = allowing
        self._metrics = metrics
        self._proxy = proxy
        self._log = log
        self._discovered = _discovery()

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route(ROOT, self._discover),
                Route(f"{ROOT}/", self._discover),
                Route(f"{ROOT}/namespaces/{{namespace}}/{{metric}}", self._value),
            ],
            exception_handlers={
                404: _http_status(404, "NotFound"),
                405: _http_status(405, "MethodNotAllowed"),
            },
        )

    async def _discover(self, request: Request) -> Response:
        async def answer(who: Caller) -> dict[str, Any]:
            await self._check(who, Deed("get", path=ROOT))
            return self._discovered

        return await self._answered(request, answer)

    async def _value(self, request: Request) -> Response:
        namespace, metric = request.path_params["namespace"], request.path_params["metric"]

        async def answer(who: Caller) -> dict[str, Any]:
            # The API server calls it so too, for there is no name of a single object in the path.
            await self._check(who, Deed("list", GROUP, VERSION, metric, namespace))
            found = self.one(namespace, metric, request.query_params.get("labelSelector", ""))
            return _value_list(found)

        return await self._answered(request, answer)

    def one(self, namespace: str, metric: str, selector: str) -> Series:
        """The one series that is meant, with a value.

        Raises NotFound where nothing matches, UsageError where more than one does or the selector
        is none, SourceUnavailable where its value is not known now.
        """
        if metric not in NAMES:
            raise NotFound(f"there is no metric {metric[:80]}; see {ROOT}")
        wanted = parse_selector(selector)
        view = self._outlooks.view()
        found: list[Series] = []
        for (where, name), scale in view.scales.items():
            # `model` stands in every series, so that others need not be worked out.
            about = [each for each in wanted if each.key == "model"]
            if where != namespace or not matches(tuple(about), {"model": name}):
                continue
            shared = self._outlooks.shared_slots(scale, view) if metric.endswith("_shared") else 0
            found += [
                series
                for series in series_of(scale, self._outlooks.of(scale, view), shared)
                if series.metric == metric and matches(wanted, series.labels)
            ]
            if len(found) > NAMED_MAX:
                break
        return self._chosen(found, namespace, metric)

    def _chosen(self, found: list[Series], namespace: str, metric: str) -> Series:
        if not found:
            raise NotFound(f"no ModelScale of namespace {namespace} has {metric} with these labels")
        if len(found) > 1:
            some = "; ".join(_labels(series) for series in found[:NAMED_MAX])
            raise UsageError(
                f"the selector fits several series, which an autoscaler would add up: {some}"
            )
        (series,) = found
        if series.value is None:
            why = self._outlooks.problem((namespace, series.labels["model"]))
            raise SourceUnavailable(f"{metric} is not known now: {why or 'demand is not known'}")
        return series

    async def _check(self, who: Caller, deed: Deed) -> None:
        allowed = self._allowing.known(who, deed)
        if allowed is None:
            allowed = await asyncio.to_thread(self._allowing.ask, who, deed)
        if not allowed:
            what = f"path {deed.path}" if deed.path else f"{deed.resource}.{deed.group}"
            where = f" in namespace {deed.namespace}" if deed.namespace else ""
            raise Denied(f"user {who.user[:100]} may not {deed.verb} {what}{where}")

    async def _answered(self, request: Request, answer: Callable[[Caller], Any]) -> Response:
        start_s = perf_counter()
        status, body = 200, {}
        try:
            who = caller(
                self._proxy(), request.scope.get(PEER_CERTIFICATE), request.scope["headers"]
            )
            body = await answer(who)
        except ModelcacheError as error:
            refusal = next(each for kind, each in _REFUSALS if isinstance(error, kind))
            status, body = refusal.status, _status(refusal.status, refusal.reason, error.message)
        self._metrics.requests.labels(FACE, str(status)).inc()
        self._metrics.seconds.labels(FACE).observe(perf_counter() - start_s)
        return JSONResponse(body, status)


def _discovery() -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{GROUP}/{VERSION}",
        "resources": [
            {
                "name": name,
                "singularName": "",
                "namespaced": True,
                "kind": "ExternalMetricValueList",
                "verbs": ["get"],
            }
            for name in NAMES
        ],
    }


def _value_list(series: Series) -> dict[str, Any]:
    assert series.value is not None  # noqa: S101 - see `one`
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": f"{GROUP}/{VERSION}",
        "metadata": {},
        "items": [
            {
                "metricName": series.metric,
                "metricLabels": dict(series.labels),
                "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "value": quantity(series.value),
            }
        ],
    }


def _http_status(code: int, reason: str) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, _: Exception) -> Response:
        return JSONResponse(_status(code, reason, f"{request.method} is not for this path"), code)

    return answer


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message[:1000],
        "reason": reason,
        "code": code,
    }


def _labels(series: Series) -> str:
    return ",".join(f"{name}={value}" for name, value in series.labels.items())
