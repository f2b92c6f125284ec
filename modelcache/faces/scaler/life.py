"""One scaler from its first watch to its last answer.

Every replica watches, reads demand and answers; the one that holds the Lease writes as well. A
replica that loses the Lease goes on answering, and waits to have it again.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp

from modelcache.faces.answering import Server, configuration
from modelcache.faces.controller.leading import Leading
from modelcache.faces.logs import Log
from modelcache.faces.scaler.checkpoint_store import CheckpointStore
from modelcache.faces.scaler.cluster import Cluster
from modelcache.faces.scaler.demand import Demand
from modelcache.faces.scaler.front_proxies import FrontProxies, ShowingPeer, asking_context
from modelcache.faces.scaler.keda import serving_keda
from modelcache.faces.scaler.keda_tls import KedaFace
from modelcache.faces.scaler.metrics import ScalerMetrics
from modelcache.faces.scaler.metrics_api import FACE, MetricsApi
from modelcache.faces.scaler.outlooks import NOT_SYNCED, Outlooks
from modelcache.faces.scaler.plain import create_plain_app
from modelcache.faces.scaler.recording import Recording
from modelcache.faces.scaler.restoring import NOT_RESTORED, Restoring
from modelcache.faces.scaler.starts import Starts
from modelcache.faces.scaler.writing import Writing
from modelcache.faces.webhook.serving import serving as answering
from modelcache.faces.webhook.tls import Certificates, LiveContext, keep_fresh

KEEP_ALIVE_S: Final = 30


class Scaler:
    """The parts that everything else asks."""

    def __init__(
        self,
        cluster: Cluster,
        demand: Demand,
        store: CheckpointStore,
        *,
        checkpoint_every_s: float,
        log: Log | None = None,
    ) -> None:
        """checkpoint_every_s: see `Recording`."""
        self.cluster = cluster
        self.demand = demand
        self.starts = Starts()
        self.outlooks = Outlooks(cluster, demand, self.starts)
        self.restoring = Restoring(store, demand, self.starts, self.outlooks, log=log)
        self.recording = Recording(
            store, self.restoring, demand, self.starts, every_s=checkpoint_every_s
        )
        self.metrics = ScalerMetrics(self.outlooks, store, self.restoring)
        cluster.listen(demand.follow)
        cluster.listen(self.starts.look)
        cluster.listen(self.restoring.follow)
        self.leaving = False

    def not_ready(self) -> str | None:
        """Why nothing should be asked here, if so."""
        if self.leaving:
            return "leaving"
        if self.cluster.view() is None:
            return NOT_SYNCED
        return None if self.restoring.tried else NOT_RESTORED

    def start(self) -> None:
        """Begin to watch and to read."""
        self.restoring.start()
        self.cluster.start()
        self.demand.start()

    def stop(self) -> None:
        """End all of it."""
        self.demand.stop()
        self.cluster.stop()
        self.restoring.stop()


class Writer:
    """Writes while it has the Lease, and asks for it again when it has lost it."""

    def __init__(self, leading: Callable[[], Leading], writing: Writing) -> None:
        """leading: makes a new one for each try."""
        self._make = leading
        self._writing = writing
        self._leading: Leading | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modelcache-scaler-writer")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left to write, let the Lease go, and end."""
        try:
            if self._thread.is_alive():
                self._writing.leave()  # the Lease is renewed meanwhile
        finally:
            with self._lock:
                self._stopped.set()
                if self._leading is not None:
                    self._leading.stop()
            if self._thread.is_alive():
                self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._stopped.is_set():
                    return
                self._leading = self._make()
            self._leading.run(self._writing.lead)


@dataclass(frozen=True, slots=True)
class MetricsFace:
    """External metrics over TLS, where they are wanted."""

    api: MetricsApi
    listener: socket.socket
    source: Certificates
    proxies: FrontProxies


async def run(
    scaler: Scaler,
    writer: Writer,
    plain: socket.socket,
    face: MetricsFace | None,
    log: Log,
    *,
    keda: KedaFace | None = None,
    ending: asyncio.Event,
    linger_s: float,
) -> None:
    """Answer until `ending` is set, and `linger_s` longer: Services forget an endpoint late.

    keda: where KEDA asks, if it does.
    """
    app = create_plain_app(scaler.outlooks, scaler.metrics, scaler.not_ready)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(plainly(app, plain))
            await asyncio.to_thread(scaler.start)
            writer.start()
            waiting = [asyncio.create_task(ending.wait())]
            if face is not None:
                serving = serving_metrics(face, scaler.metrics, log)
                waiting.append(await stack.enter_async_context(serving))
            if keda is not None:
                asking = serving_keda(scaler.outlooks, scaler.metrics, keda, log)
                await stack.enter_async_context(asking)
            log.info("scaler_ready", port=plain.getsockname()[1])
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()  # a face ends by failing only; then all does
            scaler.leaving = True
            log.info("scaler_stopping", linger_s=linger_s)
            await asyncio.sleep(linger_s)
    finally:
        await asyncio.to_thread(writer.stop)
        await asyncio.to_thread(scaler.stop)
    log.info("scaler_stopped")


@asynccontextmanager
async def serving_metrics(
    face: MetricsFace, metrics: ScalerMetrics, log: Log
) -> AsyncIterator[asyncio.Task[Any]]:
    """Answer over TLS while entered; what is given ends where that cannot go on.

    Raises what the source of certificates does.

    Whom a context trusts can be added to, never taken away from: when the front proxy's authority
    changes, a new server begins on the same port.
    """
    pair = await asyncio.to_thread(face.source.current)
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop ends
            loop.call_soon_threadsafe(changed.set)

    async def serve() -> None:
        shown = pair
        while True:
            changed.clear()
            authority = face.proxies.authority
            live = asking_context(shown, authority)

            def show_end(live: LiveContext = live) -> None:
                metrics.certificate_end.labels(FACE).set(live.end.timestamp())

            show_end()
            listener = face.listener.dup()
            async with answering(face.api.app(), listener, live.context, speaks=ShowingPeer):
                fresh = asyncio.create_task(keep_fresh(face.source, live, log, changed=show_end))
                try:
                    while authority == face.proxies.authority:
                        await changed.wait()
                        changed.clear()
                finally:
                    fresh.cancel()
            shown = await asyncio.to_thread(face.source.current)
            log.info("front_proxy_changed")

    face.proxies.start(tell)
    task = asyncio.create_task(serve())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(face.proxies.stop)


@asynccontextmanager
async def plainly(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Answer without TLS while entered."""
    server = Server(configuration(app, http="h11", keep_alive_s=KEEP_ALIVE_S))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task
