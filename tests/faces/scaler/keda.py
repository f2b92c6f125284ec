"""KEDA's external scaler in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from modelcache.faces.scaler.keda import serving_keda
from modelcache.faces.scaler.keda_tls import KedaFace
from modelcache.faces.scaler.metrics import ScalerMetrics
from modelcache.faces.scaler.outlooks import Outlooks
from modelcache.faces.webhook.tls import Certificates
from tests.faces.webhook.support import Remembered


@contextmanager
def serving(
    outlooks: Outlooks,
    metrics: ScalerMetrics,
    source: Certificates | None = None,
    log: Remembered | None = None,
) -> Iterator[int]:
    """Its port. Raises what it does when it cannot begin."""
    begun: Future[int] = Future()
    ending = threading.Event()
    face = KedaFace(("127.0.0.1", 0), source)

    async def serve() -> None:
        try:
            async with serving_keda(outlooks, metrics, face, log or Remembered()) as port:
                begun.set_result(port)
                await asyncio.to_thread(ending.wait)
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield begun.result(20)
    finally:
        ending.set()
        thread.join()
