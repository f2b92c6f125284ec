"""One connection of a peer: reads its requests one after the other, and answers each.

What is read and written has a time limit in any state, so that no peer can hold a thread for ever:

    handshake, head, body of a request   HANDSHAKE_S, HEAD_S, BODY_S
    between two requests                 IDLE_S
    an answer                            see `sending`
    a chunk that is on its way           what the asker is willing to wait, at most `peers.wait_s`;
                                         less for one that has gone
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import Final

from modelcache.config import PeerSettings
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ByteRange
from modelcache.errors import (
    CorruptData,
    Forbidden,
    Misdirected,
    ModelcacheError,
    NotFound,
    Throttled,
    UsageError,
)
from modelcache.peers import signing
from modelcache.peers.answers import (
    Fields,
    answer_head,
    content_range,
    joined_hashes,
    refusal_of,
)
from modelcache.peers.auth import PeerAuth
from modelcache.peers.connections import Connections, Flights
from modelcache.peers.counters import Counters
from modelcache.peers.messages import (
    ANNOUNCEMENT_BYTES_MAX,
    RESOLVE_BYTES_MAX,
    Announcement,
    ResolveRequest,
)
from modelcache.peers.requests import (
    ANNOUNCE_PATH,
    BLOBS_PATH,
    RESOLVE_PATH,
    RangeAsked,
    Request,
    fields_digest,
)
from modelcache.peers.sending import Outlet
from modelcache.peers.shelf import Piece, Shelf
from modelcache.peers.signing import NO_BODY, Signed, digest_of
from modelcache.peers.turns import BUSY_RETRY_S, Allowance, Turn, Turns
from modelcache.peers.wire import Stream, content_length

HANDSHAKE_S: Final = 10.0
IDLE_S: Final = 60.0  # askers let go of connections after 20 s
HEAD_S: Final = 10.0
BODY_S: Final = 10.0
TURN_WAIT_S: Final = 5.0  # then the asker hears that we are busy, and asks somebody else
LARGE_BYTES: Final = 4 << 30  # longer ranges are cut to the blob before anybody loops over them
BODIES_MAX: Final = 16  # announcements read at once; of 8 MiB at most
LINGER_BYTES: Final = 2 * ANNOUNCEMENT_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Tools:
    """What all connections share."""

    settings: PeerSettings
    me: NodeId
    shelf: Shelf
    auth: PeerAuth
    connections: Connections
    flights: Flights
    turns: Turns
    allowance: Allowance
    counters: Counters
    bodies: threading.BoundedSemaphore


class Connection:
    """`run` is a thread's whole life; `abort` may be called from others."""

    def __init__(self, client: socket.socket, tools: Tools) -> None:
        self.node: NodeId | None = None
        self.idle_since_s: float | None = monotonic()
        self.thread: threading.Thread | None = None
        self._socket = client
        self._tools = tools
        self._aborted = False
        self._secured: ssl.SSLSocket | None = None
        self._outlet = Outlet(client, tools.turns, tools.allowance, tools.counters)

    def run(self) -> None:
        """Serve until the peer goes, or does not behave. Raises nothing that a peer can cause."""
        counters = self._tools.counters
        try:
            self._open()
            stream = Stream(self._socket)
            while not self._aborted and self._serve_one(stream):
                pass
        except (TimeoutError, BlockingIOError):  # BlockingIOError: SO_SNDTIMEO has passed
            counters.trouble("slow")
        except ssl.SSLError:
            counters.trouble("tls")
        except OSError:
            counters.trouble("lost")
        finally:
            self.close()

    def abort(self) -> None:
        """See `connections.Closable`."""
        self._aborted = True
        with suppress(OSError):  # closed already
            # Not SSLSocket.shutdown, which would take the encryption away under its user.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close, and leave the list of connections. Idempotent."""
        self._socket.close()
        self._tools.connections.remove(self)

    def _open(self) -> None:
        self._outlet.prepare()
        tls = self._tools.auth.tls
        if tls is None:
            return
        self._socket.settimeout(HANDSHAKE_S)
        self._socket = self._secured = tls.server_context().wrap_socket(
            self._socket, server_side=True, do_handshake_on_connect=False
        )
        self._outlet.secure(self._secured)
        self._secured.do_handshake()

    def _serve_one(self, stream: Stream) -> bool:
        """Answer one request; whether another may follow."""
        self.idle_since_s = monotonic()
        try:
            head = stream.read_head(idle_s=IDLE_S, head_s=HEAD_S)
            self.idle_since_s = None
            if not head:
                return False
            request = Request.parse(head)
        except (CorruptData, UsageError) as error:
            self.idle_since_s = None
            self._tools.counters.trouble("malformed")
            self._refuse(error, None, keep=False)
            return False
        return self._answer(request, stream)

    def _answer(self, request: Request, stream: Stream) -> bool:
        tools = self._tools
        head_only = request.method == "HEAD"
        try:
            signed = self._admit(request)
        except ModelcacheError as error:
            tools.counters.trouble(error.code)
            self._refuse(error, None, keep=False, head_only=head_only)
            return False
        tools.counters.request(request.node)
        try:
            return self._dispatch(request, signed, stream)
        except ModelcacheError as error:
            tools.counters.refusal(request.node, error.code)
            # Of others, a body may still be on its way.
            read = request.method != "POST" or isinstance(error, Misdirected)
            keep = request.keep and read
            self._refuse(error, signed, keep=keep, head_only=head_only)
            return keep

    def _admit(self, request: Request) -> Signed | None:
        """Raises NoCredentials, Forbidden, UsageError; Throttled for one connection too many."""
        auth = self._tools.auth
        if auth.tls is not None and self._secured is not None:
            auth.tls.check_client(self._secured.getpeercert())
        signed = auth.admit(request.scope, request.fields)
        self._tools.connections.name(self, request.node)
        return signed

    def _dispatch(self, request: Request, signed: Signed | None, stream: Stream) -> bool:
        match request.method, request.path:
            case (("GET" | "HEAD"), path) if path.startswith(BLOBS_PATH):
                self._check_meant(request, signed)
                with self._tools.flights.one():
                    self._give(request, signed)
                return request.keep
            case "POST", path if path == ANNOUNCE_PATH:
                body = self._announced(request, signed, stream)
            case "POST", path if path == RESOLVE_PATH:
                data = self._read_body(request, signed, stream, RESOLVE_BYTES_MAX)
                body = self._tools.shelf.resolve(ResolveRequest.from_json(data))
            case _:
                raise NotFound("there is nothing under this path and method")
        fields = (("Content-Type", "application/json"),)
        self._send_small(HTTPStatus.OK, body, fields, signed, keep=request.keep)
        return request.keep

    def _check_meant(self, request: Request, signed: Signed | None) -> None:
        """What was signed for another node is of no use here. Raises Misdirected."""
        me = self._tools.me
        if signed is not None and request.to != me:
            asked = f"node {request.to} is asked" if request.to else "it is not said who is asked"
            raise Misdirected(f"{asked}, and this is node {me}", node=me)

    # Messages

    def _announced(self, request: Request, signed: Signed | None, stream: Stream) -> bytes:
        bodies = self._tools.bodies
        if not bodies.acquire(timeout=TURN_WAIT_S):
            raise Throttled("too many announcements at once", retry_after_s=BUSY_RETRY_S)
        try:
            data = self._read_body(request, signed, stream, ANNOUNCEMENT_BYTES_MAX)
            said = Announcement.from_json(data)
        finally:
            bodies.release()
        if said.node != request.node:
            raise Forbidden("a node can announce only itself")
        return self._tools.shelf.announce(said).to_json()

    def _read_body(
        self, request: Request, signed: Signed | None, stream: Stream, most_bytes: int
    ) -> bytes:
        size_bytes = content_length(request.fields, most_bytes)
        if request.fields.get("expect", "").lower() == "100-continue":
            self._outlet.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.read_body(size_bytes, deadline_s=monotonic() + BODY_S)
        digest = fields_digest(request.fields)
        if (signed is not None or digest != NO_BODY) and digest != digest_of(body):
            raise Forbidden("the body is not the one that was signed")
        self._check_meant(request, signed)
        return body

    # Weights

    def _give(self, request: Request, signed: Signed | None) -> None:
        """Answer with a range of a blob. Raises before the first byte is sent, or OSError."""
        blob = request.blob()
        text = request.fields.get("range")
        asked = RangeAsked.parse(text) if text is not None else RangeAsked()
        span = asked.span()
        if request.method == "HEAD" or span is None or span.size_bytes > LARGE_BYTES:
            with closing(self._ask(request, blob, ByteRange(0, 0))) as piece:
                total_bytes = piece.total_bytes
            if request.method == "HEAD":
                head = answer_head(HTTPStatus.OK, total_bytes, (), keep=request.keep)
                self._outlet.send(head)
                return
            span = asked.within(total_bytes)
            if span is None:
                self._unsatisfiable(total_bytes, signed, keep=request.keep)
                return
        with closing(self._ask(request, blob, span)) as piece:
            within = asked.within(piece.total_bytes)
            if within is None:
                self._unsatisfiable(piece.total_bytes, signed, keep=request.keep)
                return
            head = self._head_of(request, piece, within, signed, whole=text is None)
            self._send_in_turn(request, head, piece, within)

    def _ask(self, request: Request, blob: BlobId, span: ByteRange) -> Piece:
        tools = self._tools
        with tools.counters.waiting(request.node):
            return tools.shelf.open(
                blob,
                span,
                wait_s=min(request.wait_s, tools.settings.wait_s),
                priority=request.priority,
                node=request.node,
                gone=self._gone,
            )

    def _gone(self) -> bool:
        """Whether the peer has closed, or was closed on: nobody would read an answer."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _head_of(
        self, request: Request, piece: Piece, span: ByteRange, signed: Signed | None, *, whole: bool
    ) -> bytes:
        status = HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT
        placed = content_range(span, piece.total_bytes)
        hashes = joined_hashes(piece.hashes) if span.size_bytes == piece.size_bytes else ""
        said = signing.answer_to(status, content_range=placed, hashes=hashes)
        fields: list[tuple[str, str]] = [("Content-Type", "application/octet-stream")]
        if not whole:
            fields.append(("Content-Range", placed))
        if hashes:
            fields.append(("X-Modelcache-Xxh3", hashes))
        fields += self._tools.auth.sign_answer(signed, said)
        return answer_head(status, span.size_bytes, tuple(fields), keep=request.keep)

    def _send_in_turn(self, request: Request, head: bytes, piece: Piece, span: ByteRange) -> None:
        tools = self._tools
        turn = Turn(tools.turns, request.node, request.priority)
        with tools.counters.waiting(request.node):
            turn.take(TURN_WAIT_S)
        try:
            with tools.counters.sending(request.node):
                self._outlet.send(head, more=True)
                self._outlet.send_file(
                    piece.fd, piece.offset, span.size_bytes, node=request.node, turn=turn
                )
        finally:
            turn.leave()

    # Answers without weights

    def _unsatisfiable(self, total_bytes: int, signed: Signed | None, *, keep: bool) -> None:
        fields = (("Content-Range", f"bytes */{total_bytes}"),)
        status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        self._send_small(status, b"", fields, signed, keep=keep)

    def _refuse(
        self,
        error: ModelcacheError,
        signed: Signed | None,
        *,
        keep: bool,
        head_only: bool = False,
    ) -> None:
        status, body, fields = refusal_of(error)
        self._send_small(status, body, fields, signed, keep=keep, head_only=head_only)
        if not keep:
            self._outlet.linger(LINGER_BYTES)

    def _send_small(
        self,
        status: HTTPStatus,
        body: bytes,
        fields: Fields,
        signed: Signed | None,
        *,
        keep: bool,
        head_only: bool = False,
    ) -> None:
        said = signing.answer_to(status, body=body)
        fields = (*fields, *self._tools.auth.sign_answer(signed, said))
        head = answer_head(status, len(body), fields, keep=keep)
        self._outlet.send(head if head_only else head + body)
