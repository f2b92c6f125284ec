"""KEDA's external scaler: gRPC, as its operator and its metrics server ask.

A ScaledObject names a `ModelScale` of its own namespace. What KEDA is told is the recommendation,
with 1 as its target, so that KEDA's HorizontalPodAutoscaler has as many replicas. Active means that
there should be one at all; it stays so while any replica is on its way, for KEDA would else take it
back in the middle of its load. What is not known is an error, upon which KEDA changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass

from modelcache.errors import (
    InvalidConfig,
    ModelcacheError,
    NotFound,
    SourceUnavailable,
    UsageError,
)
from modelcache.faces.logs import Log
from modelcache.faces.scaler.keda_tls import KedaFace, credentials_of
from modelcache.faces.scaler.metrics import ScalerMetrics
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.scaler.protocol import externalscaler_pb2 as protocol
from modelcache.forecast.outlook import Outlook
from modelcache.forecast.recommend import lead_time_load

SERVICE: Final = "ExternalScaler"
FACE: Final = "keda"
LOOK_S: Final = 0.25
"""Between looks at what a stream tells; a view is made as often."""
STREAMS_MAX: Final = 2000
CALLS_MAX: Final = 4000
MESSAGE_BYTES_MAX: Final = 64 << 10
GRACE_S: Final = 2.0
RECOMMENDED: Final = "recommended"
LOAD: Final = "load"
ALWAYS: Final = "always"
WARM: Final = "warm"
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "metric": (RECOMMENDED, LOAD),
    "fromZero": (ALWAYS, WARM),
    "quantile": ("0.9", "0.5"),
}
_KEDAS: Final = frozenset(
    {
        *("scalerAddress", "enableTLS", "unsafeSsl"),
        *("caCert", "tlsClientCert", "tlsClientKey", "tlsCertFile"),
    }
)
"""Metadata that is meant for KEDA itself, which passes on all that there is."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a ScaledObject states. from_zero: `warm` to wait until a node has the model."""

    namespace: str
    model: str
    metric: str
    from_zero: str
    quantile: str

    @property
    def name(self) -> str:
        """Of the metric, as KEDA and we call it."""
        return f"modelcache-{self.metric}"


def trigger_of(asked: protocol.ScaledObjectRef) -> Trigger:
    """Read a ScaledObject's metadata. Raises UsageError, saying what to change."""
    metadata = dict(asked.scalerMetadata)
    unknown = sorted(set(metadata) - {"model", *_CHOICES} - _KEDAS)
    if unknown:
        raise UsageError(
            f"metadata {unknown[0][:60]!r} is none of ours: model, {', '.join(_CHOICES)}"
        )
    for name, choices in _CHOICES.items():
        if metadata.get(name, choices[0]) not in choices:
            raise UsageError(f"metadata {name} is one of {', '.join(choices)}")
    chosen = {name: metadata.get(name, choices[0]) for name, choices in _CHOICES.items()}
    return Trigger(
        namespace=asked.namespace,
        model=metadata.get("model") or asked.name,
        metric=chosen["metric"],
        from_zero=chosen["fromZero"],
        quantile=chosen["quantile"],
    )


class ExternalScaler:
    """See the module. Each method has the protocol's name."""

    def __init__(self, outlooks: Outlooks) -> None:
        self._outlooks = outlooks
        self._streams = 0

    async def IsActive(  # noqa: N802 - the protocol's name
        self,
        request: protocol.ScaledObjectRef,
        _: Any,  # noqa: ANN401 - grpc has no types
    ) -> protocol.IsActiveResponse:
        """Whether there should be a replica at all."""
        return protocol.IsActiveResponse(result=self._active(trigger_of(request)))

    async def GetMetricSpec(  # noqa: N802
        self,
        request: protocol.ScaledObjectRef,
        _: Any,  # noqa: ANN401
    ) -> protocol.GetMetricSpecResponse:
        """One metric, with the target 1: its value is how many replicas there should be."""
        trigger = trigger_of(request)
        spec = protocol.MetricSpec(metricName=trigger.name, targetSize=1, targetSizeFloat=1.0)
        return protocol.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(  # noqa: N802
        self,
        request: protocol.GetMetricsRequest,
        _: Any,  # noqa: ANN401
    ) -> protocol.GetMetricsResponse:
        """Its value now."""
        trigger = trigger_of(request.scaledObjectRef)
        if request.metricName not in {"", trigger.name}:
            raise NotFound(f"there is no metric {request.metricName[:80]!r}")
        value = self._value(trigger)
        # What counts is the float, unless that is 0.
        found = protocol.MetricValue(
            metricName=trigger.name, metricValue=math.ceil(value), metricValueFloat=value
        )
        return protocol.GetMetricsResponse(metricValues=[found])

    async def StreamIsActive(  # noqa: N802
        self,
        request: protocol.ScaledObjectRef,
        _: Any,  # noqa: ANN401
    ) -> AsyncIterator[protocol.IsActiveResponse]:
        """The same at once, and then whenever it changes; what is not known is not told."""
        trigger = trigger_of(request)
        self._scale(trigger)  # what is not there is told at once
        told: bool | None = None
        async for _ in self._looks():
            try:
                active = self._active(trigger)
            except SourceUnavailable:
                continue
            if active is not told:
                told = active
                yield protocol.IsActiveResponse(result=active)

    async def StreamMetricSpec(  # noqa: N802
        self,
        request: protocol.ScaledObjectRef,
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[protocol.GetMetricSpecResponse]:
        """The same at once; it never changes while a ScaledObject is what it is."""
        yield await self.GetMetricSpec(request, context)
        async for _ in self._looks():
            continue

    async def _looks(self) -> AsyncIterator[None]:
        if self._streams >= STREAMS_MAX:
            raise SourceUnavailable(f"there are {STREAMS_MAX} streams already")
        self._streams += 1
        try:
            while True:
                yield
                await asyncio.sleep(LOOK_S)
        finally:
            self._streams -= 1

    def _scale(self, trigger: Trigger) -> Outlook:
        view = self._outlooks.view()
        scale = view.scales.get((trigger.namespace, trigger.model))
        if scale is None:
            raise NotFound(
                f"namespace {trigger.namespace[:80]} has no ModelScale {trigger.model[:80]!r}"
            )
        return self._outlooks.of(scale, view)

    def _active(self, trigger: Trigger) -> bool:
        found = self._scale(trigger)
        if found.starting or found.pending:
            return True
        if found.recommended is None:
            raise self._unknown(trigger)
        if not found.ready and trigger.from_zero == WARM and not found.warm_nodes:
            return False
        return found.recommended > 0

    def _value(self, trigger: Trigger) -> float:
        found = self._scale(trigger)
        if found.recommended is None or found.rate is None:
            raise self._unknown(trigger)
        if trigger.metric == RECOMMENDED:
            return float(found.recommended)
        lead_s = found.lead.p90_s if trigger.quantile == "0.9" else found.lead.p50_s
        scale = self._outlooks.view().scales[trigger.namespace, trigger.model]
        return lead_time_load(found.rate, found.slope, lead_s, scale.asked.per_replica)

    def _unknown(self, trigger: Trigger) -> SourceUnavailable:
        why = self._outlooks.problem((trigger.namespace, trigger.model))
        return SourceUnavailable(f"demand is not known now: {why or 'it is too old'}")


@asynccontextmanager
async def serving_keda(
    outlooks: Outlooks, metrics: ScalerMetrics, face: KedaFace, log: Log
) -> AsyncIterator[int]:
    """Answer while entered; gives the port. Raises InvalidConfig where it cannot be had."""

    def ends(at: datetime) -> None:
        metrics.certificate_end.labels(FACE).set(at.timestamp())

    async with (
        credentials_of(face, log, ends) as credentials,
        _answering_at(outlooks, metrics, face.address, credentials) as port,
    ):
        yield port


@asynccontextmanager
async def _answering_at(
    outlooks: Outlooks,
    metrics: ScalerMetrics,
    address: tuple[str, int],
    credentials: Any,  # noqa: ANN401 - grpc has no types
) -> AsyncIterator[int]:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    server.add_generic_rpc_handlers((_handlers(ExternalScaler(outlooks), metrics),))
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            bound = server.add_insecure_port(where)
        else:
            bound = server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise InvalidConfig(f"cannot listen on {where}: {error}") from error
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(GRACE_S)


def _handlers(service: ExternalScaler, metrics: ScalerMetrics) -> Any:  # noqa: ANN401
    """All methods that the protocol has, each answering with its errors."""
    descriptor = protocol.DESCRIPTOR.services_by_name[SERVICE]
    methods: dict[str, Any] = {}
    for method in descriptor.methods:
        streams = method.name.startswith("Stream")
        make = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        call = getattr(service, method.name)
        methods[method.name] = make(
            _streaming(call, metrics) if streams else _answering(call, metrics),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _answering(call: Callable[..., Any], metrics: ScalerMetrics) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:  # noqa: ANN401
        start_s = perf_counter()
        code = grpc.StatusCode.OK
        try:
            return await call(request, context)
        except ModelcacheError as error:
            code = _code(error)
            await context.abort(code, error.message)
        finally:
            metrics.requests.labels(FACE, code.name.lower()).inc()
            metrics.seconds.labels(FACE).observe(perf_counter() - start_s)

    return answer


def _streaming(call: Callable[..., Any], metrics: ScalerMetrics) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:  # noqa: ANN401
        try:
            async for each in call(request, context):
                metrics.requests.labels(FACE, "pushed").inc()
                yield each
        except ModelcacheError as error:
            code = _code(error)
            metrics.requests.labels(FACE, code.name.lower()).inc()
            await context.abort(code, error.message)

    return answer


def _code(error: ModelcacheError) -> Any:  # noqa: ANN401
    kinds: tuple[tuple[type[ModelcacheError], Any], ...] = (
        (NotFound, grpc.StatusCode.NOT_FOUND),
        (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
        (SourceUnavailable, grpc.StatusCode.UNAVAILABLE),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)
