"""One worker's requests: signed targets in, checked bodies out, connections kept between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from modelcache.config import TransferSettings
from modelcache.domain.ranges import ByteRange
from modelcache.errors import SourceUnavailable
from modelcache.planner import SourceId, peer_of
from modelcache.sources.source import HttpTarget, LocalTarget, Source
from modelcache.transfer.bodies import Body, LocalBody, check_length
from modelcache.transfer.connections import IdleConnections
from modelcache.transfer.http1 import HttpConnection, ResponseHead, endpoint_of
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.pacing import Pacer
from modelcache.transfer.report import SourceReport, WorkerTimes
from modelcache.transfer.shared import REQUEST_UNITS


@dataclass(slots=True)
class Exchange:
    """One request under way: what was asked, and where the answer will come from.

    refused: networks in which that may not be.
    """

    job: BlobJob
    source: Source
    span: ByteRange | None
    report: SourceReport
    sent_s: float
    target: HttpTarget | None = None
    connection: HttpConnection | None = None
    local: LocalBody | None = None
    head: ResponseHead | None = None
    refused: tuple[str, ...] = ()


class Requests:
    """Not thread-safe, except for `abort`."""

    def __init__(
        self,
        settings: TransferSettings,
        idle: IdleConnections,
        times: WorkerTimes,
        *,
        pacer: Pacer | None = None,
    ) -> None:
        """pacer: of requests to origins, in REQUEST_UNITS."""
        self._pacer = pacer
        self.first_byte_s = 0.0  # of the last request
        self._settings = settings
        self._times = times
        self._idle = idle
        self._open: dict[int, HttpConnection] = {}
        self._aborted = False

    def begin(self) -> None:
        """What was aborted is over."""
        self._aborted = False

    def send(
        self,
        job: BlobJob,
        source_id: SourceId,
        span: ByteRange | None,
        report: SourceReport,
        *,
        fresh: bool,
    ) -> Exchange:
        """Ask for a range (None: the whole file). Raises as `locate` does, SourceUnavailable."""
        started_s = perf_counter()
        target = job.target(source_id, fresh=fresh)
        signed_s = perf_counter()
        self._times.signing_s += signed_s - started_s
        report.requests += 1
        peer = peer_of(source_id) is not None
        if self._pacer is not None and not peer:
            self._pacer.spend(REQUEST_UNITS)
        if not job.file.ranges and not peer:
            span = None
        exchange = Exchange(job, job.asked(source_id), span, report, signed_s)
        if not peer:  # who they are is the cluster's to say
            exchange.refused = self._settings.refused_networks
        if isinstance(target, LocalTarget):
            # A shared file is hashed as the store has it: the user's may change meanwhile.
            shared = job.writer is not None and job.writer.shared
            path = job.writer.data_path if job.writer and shared else Path(target.path)
            exchange.local = LocalBody(path, span.start if span else 0)
            return exchange
        exchange.target = target
        if exchange.span is None and (peer or target.window is not None):
            exchange.span = ByteRange(0, job.file.size_bytes)  # never all that the address holds
        self._dispatch(exchange, target, fresh=False)
        return exchange

    def receive(self, exchange: Exchange) -> Body:
        """Read the answer's head and check all it can tell.

        Raises what the source makes of a refusal, OriginChanged, SourceUnavailable.
        """
        if exchange.local is not None:
            return exchange.local
        connection, head = self._answer(exchange)
        exchange.head = head
        now_s = perf_counter()
        self.first_byte_s = now_s - exchange.sent_s
        self._times.first_byte_s += self.first_byte_s
        file = exchange.job.file
        if head.status not in {200, 206}:
            body = connection.read_error_body()
            self.done(exchange)
            raise exchange.source.refusal(file, head.status, head.headers, body)
        exchange.source.check_pin(file, head.headers)
        window = exchange.target.window if exchange.target else None
        check_length(file, exchange.span, head.headers, connection.length_bytes, window=window)
        return connection

    def promised(self, exchange: Exchange) -> tuple[bytes, ...]:
        """XXH3-128 of each chunk of an answer, where its source tells them (peers do)."""
        promise = getattr(exchange.source, "promised", None)
        if promise is None or exchange.head is None:
            return ()
        hashes: tuple[bytes, ...] = promise(exchange.head.headers)
        return hashes

    def done(self, exchange: Exchange) -> None:
        """The body was read: keep the connection if the next request may follow on it."""
        connection = exchange.connection
        if connection is None:
            return
        self._open.pop(id(connection), None)
        if connection.finished():
            self._idle.put(connection)
        else:
            connection.close()

    def drop_open(self) -> None:
        """Close every connection whose answer was not read to its end."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def abort(self) -> None:
        """Wake up the reader, from another thread; it can open nothing more until `begin`."""
        self._aborted = True
        for connection in list(self._open.values()):
            connection.abort()

    def _answer(self, exchange: Exchange) -> tuple[HttpConnection, ResponseHead]:
        connection, target = exchange.connection, exchange.target
        assert connection is not None, "sent"  # noqa: S101
        assert target is not None, "sent"  # noqa: S101
        reused = connection.answered > 0
        try:
            return connection, connection.read_head()
        except SourceUnavailable:
            self._discard(connection)
            if not reused:
                raise
        # A kept connection may have been closed by its server meanwhile: nobody's failure.
        connection = self._dispatch(exchange, target, fresh=True)
        return connection, connection.read_head()

    def _dispatch(self, exchange: Exchange, target: HttpTarget, *, fresh: bool) -> HttpConnection:
        span = exchange.span
        shift = target.window[0] if target.window else 0
        byte_range = f"bytes={shift + span.start}-{shift + span.end - 1}" if span else None
        while True:
            connection = None if fresh else self._idle.take(endpoint_of(target))
            if connection is None:
                connection = self._connect(target, exchange)
            self._open[id(connection)] = exchange.connection = connection
            if self._aborted:  # looked at after it can be found by `abort`: one of the two sees it
                self._discard(connection)
                raise SourceUnavailable("the request was aborted")
            exchange.sent_s = perf_counter()
            try:
                connection.send(target, byte_range)
            except SourceUnavailable:
                self._discard(connection)
                if not connection.answered:
                    raise
                continue
            return connection

    def _connect(self, target: HttpTarget, exchange: Exchange) -> HttpConnection:
        started_s = perf_counter()
        connection = HttpConnection(
            target,
            connect_timeout_s=self._settings.connect_timeout_s,
            stall_timeout_s=self._settings.stall_timeout_s,
            refused=exchange.refused,
        )
        self._times.connecting_s += perf_counter() - started_s
        exchange.report.connections += 1
        return connection

    def _discard(self, connection: HttpConnection) -> None:
        self._open.pop(id(connection), None)
        connection.close()
