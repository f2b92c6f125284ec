"""Asks peers small things: what they have, and what refs mean. Weights go another way.

One connection to each peer is kept for the next question, and the name that the peer has said when
it was asked first: a question is signed for one node. A question has one time limit for all of
it, whatever the peer does meanwhile.
"""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import Final

from modelcache.domain.members import Member, NodeId
from modelcache.errors import CorruptData, Misdirected, SourceRefused, SourceUnavailable
from modelcache.peers.answers import error_of, name_in
from modelcache.peers.auth import PeerAuth, not_a_peer
from modelcache.peers.messages import ANNOUNCEMENT_BYTES_MAX, Announcement, ResolveRequest
from modelcache.peers.requests import ANNOUNCE_PATH, RESOLVE_PATH
from modelcache.peers.signing import Scope, answer_to, digest_of
from modelcache.peers.wire import Stream, build_head, content_length, parse_head

RESOLVED_BYTES_MAX: Final = 64 << 20  # a manifest of two hundred thousand files
REFUSAL_BYTES_MAX: Final = 64 << 10
IDLE_S: Final = 20.0  # the other side closes after 60
IDLE_MAX: Final = 128  # two cells
NAMES_MAX: Final = 10_000  # all members there may be


@dataclass(frozen=True, slots=True)
class _Question:
    """One request, and how much of what is waited for. deadline_s: monotonic."""

    member: Member
    path: str
    body: bytes
    most_bytes: int
    deadline_s: float


class _Line:
    """One connection, and when it was last used."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.stream = Stream(connected)
        self.used_s = monotonic()
        self.answered = False


class PeerClient:
    """Thread-safe: a connection serves one question at a time, others open their own."""

    def __init__(self, auth: PeerAuth, me: NodeId) -> None:
        """me: who asks."""
        self._auth = auth
        self._me = me
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, int], _Line] = {}
        self._names: dict[tuple[str, int], NodeId] = {}
        self._closed = False

    def announce(self, member: Member, said: Announcement, *, timeout_s: float) -> Announcement:
        """Tell a peer, and hear its answer.

        Idempotent. Raises SourceUnavailable, SourceRefused, CorruptData.
        """
        deadline_s = monotonic() + timeout_s
        most_bytes = ANNOUNCEMENT_BYTES_MAX
        answer = self._ask(_Question(member, ANNOUNCE_PATH, said.to_json(), most_bytes, deadline_s))
        return Announcement.from_json(answer)

    def resolve(self, member: Member, asked: ResolveRequest, *, timeout_s: float) -> bytes:
        """What a ref means, as the peer's message. Raises as `announce` does."""
        deadline_s = monotonic() + timeout_s
        most_bytes = RESOLVED_BYTES_MAX
        return self._ask(_Question(member, RESOLVE_PATH, asked.to_json(), most_bytes, deadline_s))

    def close(self) -> None:
        """Close what is idle, and keep nothing from now on. Idempotent."""
        with self._lock:
            self._closed = True
            idle = list(self._idle.values())
            self._idle.clear()
        for line in idle:
            line.socket.close()

    def _ask(self, question: _Question) -> bytes:
        try:
            return self._ask_as_known(question)
        except Misdirected as error:  # never asked before, or another node has that address now
            with self._lock:
                if len(self._names) >= NAMES_MAX:
                    self._names.clear()
                self._names[question.member.host, question.member.port] = NodeId(error.node)
        try:
            return self._ask_as_known(question)
        except Misdirected as error:
            raise SourceUnavailable(
                f"{question.member.address} answers under one name and then another"
            ) from error

    def _ask_as_known(self, question: _Question) -> bytes:
        """Raises Misdirected when the peer's name is another than was known, too."""
        member = question.member
        line = self._take(member)
        while True:
            reused = line is not None
            try:
                if line is None:
                    line = self._connect(member, question.deadline_s)
                return self._exchange(line, question)
            except (ConnectionError, ssl.SSLEOFError) as error:
                if not reused or (line is not None and line.answered):
                    raise _unreachable(member, error) from error
                line = None  # closed by the peer while it was idle: nobody's failure
            except ssl.SSLCertVerificationError as error:
                raise SourceRefused(
                    f"the certificate of {member.address} is not trusted: {error.verify_message}; "
                    "see peers.ca_file and peers.server_name"
                ) from error
            except OSError as error:
                raise _unreachable(member, error) from error

    def _exchange(self, line: _Line, question: _Question) -> bytes:
        """One question on a connection, which is kept or closed afterwards."""
        kept = line.answered = False
        where, deadline_s = question.member.address, question.deadline_s
        try:
            to = self._names.get((question.member.host, question.member.port), "")
            scope = Scope("POST", question.path, self._me, to, digest_of(question.body))
            _send(line.socket, self._request(scope, question), deadline_s)
            left_s = max(0.0, deadline_s - monotonic())
            head = line.stream.read_head(idle_s=left_s, head_s=left_s)
            if not head:
                raise _nothing_said(deadline_s)
            line.answered = True
            status, fields = _parse(head)
            most_bytes = question.most_bytes if status == HTTPStatus.OK else REFUSAL_BYTES_MAX
            size_bytes = content_length(fields, most_bytes)
            answer = line.stream.read_body(size_bytes, deadline_s=deadline_s)
            kept = fields.get("connection", "").lower() != "close"
        finally:
            if kept:
                self._put(question.member, line)
            else:
                line.socket.close()
        misdirected = status == HTTPStatus.MISDIRECTED_REQUEST
        if status != HTTPStatus.OK and not misdirected:
            raise error_of(where, status, fields, answer)
        if not self._auth.answered(scope, fields, answer_to(status, body=answer)):
            raise not_a_peer(where)
        if misdirected:
            raise Misdirected(f"{where} is another node", node=name_in(answer))
        return answer

    def _request(self, scope: Scope, question: _Question) -> bytes:
        fields = (
            ("Host", question.member.address),
            ("X-Modelcache-Node", self._me),
            ("X-Modelcache-Digest", scope.digest),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(question.body))),
            *self._auth.sign(scope),
        )
        return build_head(f"POST {scope.path} HTTP/1.1", fields) + question.body

    def _connect(self, member: Member, deadline_s: float) -> _Line:
        left_s = deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        plain = socket.create_connection((member.host, member.port), timeout=left_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._auth.tls
            if tls is None:
                return _Line(plain)
            name = tls.server_name or member.host
            return _Line(tls.client_context().wrap_socket(plain, server_hostname=name))
        except BaseException:
            plain.close()
            raise

    def _take(self, member: Member) -> _Line | None:
        with self._lock:
            line = self._idle.pop((member.host, member.port), None)
        if line is not None and monotonic() - line.used_s > IDLE_S:
            line.socket.close()
            return None
        return line

    def _put(self, member: Member, line: _Line) -> None:
        line.used_s = monotonic()
        with self._lock:
            other = None if self._closed else self._idle.pop((member.host, member.port), None)
            if self._closed:
                other = line
            else:
                self._idle[(member.host, member.port)] = line
                if len(self._idle) > IDLE_MAX:
                    other = self._idle.pop(next(iter(self._idle)))
        if other is not None:
            other.socket.close()


def _send(out: socket.socket, data: bytes, deadline_s: float) -> None:
    left_s = deadline_s - monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer in time")
    out.settimeout(left_s)  # of plain sockets, `sendall` takes it for all of it
    out.sendall(data)


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    line, fields = parse_head(head)
    version, _, rest = line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit() or not rest[:3].isascii():
        raise CorruptData("what answers does not speak HTTP/1.1")
    return int(rest[:3]), fields


def _nothing_said(deadline_s: float) -> OSError:
    if monotonic() >= deadline_s:
        return TimeoutError("no answer in time")
    return ConnectionResetError("closed without an answer")


def _unreachable(member: Member, error: OSError) -> SourceUnavailable:
    if isinstance(error, TimeoutError):
        reason = "no answer in time"
    else:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
    return SourceUnavailable(f"{member.address} cannot be asked: {reason}")
