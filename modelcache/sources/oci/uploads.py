"""Uploads: how a blob gets into a repository (distribution specification, "Pushing blobs").

A blob whose digest is known goes in one PUT. One whose digest is not known is sent while it is
hashed, in one PATCH, and the PUT that ends the session names the digest: so weights are read once.
After a failure the registry is asked how far it has come, and the rest follows; a session that it
no longer knows is begun anew. Registries or proxies that refuse long bodies get chunks.

Owns sessions and their failures. It does not know what a blob is for.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Final, cast
from urllib.parse import quote

from modelcache.errors import (
    Cancelled,
    CredentialsExpired,
    DigestMismatch,
    Forbidden,
    ModelcacheError,
    NoCredentials,
    SourceUnavailable,
)
from modelcache.sources.oci.denials import codes, denial
from modelcache.sources.oci.outgoing import STOPPED, LayerReader
from modelcache.sources.oci.registry import Registry
from modelcache.sources.oci.wire import Body, Reply

RETRIES_MAX: Final = 5  # failures in a row in which the registry gained nothing
BACKOFF_S: Final = 0.5  # doubled each time, with jitter
BACKOFF_S_MAX: Final = 30.0
FALLBACK_CHUNK_BYTES: Final = 64 << 20  # common front ends stop at 100 MB
SINGLE_POST_BYTES_MAX: Final = 64 << 10  # sent twice where a registry does not know single POSTs
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_OCTETS: Final = {"Content-Type": "application/octet-stream"}
_ACCEPTED: Final = frozenset({200, 201, 202, 204})
_LOST: Final = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "RANGE_INVALID"})


@dataclass(slots=True)
class Session:
    """An upload that the registry has begun.

    offset: bytes that it is known to have. doubtful: it may have others; ask before going on.
    """

    url: str = field(repr=False)
    chunk_min_bytes: int = 0
    offset: int = 0
    doubtful: bool = False


class BlobPusher:
    """Blobs of one repository: ask for them, mount them, send them. Thread-safe."""

    def __init__(
        self, registry: Registry, repository: str, *, chunk_bytes: int, stop: threading.Event
    ) -> None:
        """repository: as `Registry.repository` gives it. chunk_bytes: 0 for as few as possible."""
        self.registry = registry
        self.repository = repository
        self.chunk_bytes = chunk_bytes
        self.takes_single_posts = True  # until it has shown that it does not
        self._stop = stop
        self._guard = threading.Lock()
        self._spare: list[Session] = []
        self._unmountable: set[str] = set()

    def has(self, digest: str) -> bool:
        """Whether the blob is in the repository; no if the registry does not say."""
        reply = self.ask("HEAD", f"/v2/{self.repository}/blobs/{digest}")
        return reply.status == 200  # noqa: PLR2004

    def mount(self, digest: str, other: str) -> bool:
        """Take the blob from another repository of the registry, if that can be done.

        Raises DigestMismatch where the registry mounts something else.
        """
        if other in self._unmountable:
            return False
        path = f"/v2/{self.repository}/blobs/uploads/?mount={quote(digest)}&from={quote(other)}"
        try:
            reply = self.ask("POST", path, mount_from=other)
        except (Forbidden, NoCredentials):  # there; what may be done here is not known yet
            self._unmountable.add(other)
            return False
        if reply.status == 201:  # noqa: PLR2004
            self.check(reply, digest)
            return True
        if reply.status == 202:  # noqa: PLR2004 - an upload instead: some file will need one
            with self._guard:
                self._spare.append(_session(reply, self))
        else:
            self._unmountable.add(other)
        return False

    def begin(self, what: str) -> Session:
        """An upload session. Raises what `denial` gives."""
        with self._guard:
            if self._spare:
                return self._spare.pop()
        reply = self.ask("POST", f"/v2/{self.repository}/blobs/uploads/", data=b"")
        if reply.status != 202:  # noqa: PLR2004
            raise self.denied(what, reply)
        return _session(reply, self)

    def post(self, digest: str, data: bytes) -> bool:
        """Send a small blob in one request, if the registry takes it so. False: it did not."""
        path = f"/v2/{self.repository}/blobs/uploads/?digest={quote(digest)}"
        reply = self.ask("POST", path, data=data, headers=_OCTETS)
        if reply.status == 201:  # noqa: PLR2004
            self.check(reply, digest)
            return True
        self.takes_single_posts = False
        if reply.status == 202:  # noqa: PLR2004
            with self._guard:
                self._spare.append(_session(reply, self))
        return False

    def send(self, reader: LayerReader, digest: str | None) -> str:
        """Bring a blob into the repository and return its digest; None where it is not known yet.

        Raises SourceUnavailable after too many failures in a row, DigestMismatch where the registry
        has other bytes, OriginChanged for a file that somebody writes to, Cancelled, and what
        `denial` gives. A session that was begun is left to expire then.
        """
        return _Upload(self, reader, digest).run()

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Body | None = None,
        mount_from: str = "",
    ) -> Reply:
        """Send a request that may write. Raises as `Registry.request`."""
        return self.registry.request(
            method,
            url,
            repository=self.repository,
            push=True,
            mount_from=mount_from,
            headers=headers,
            data=data,
        )

    def denied(self, what: str, reply: Reply) -> ModelcacheError:
        """See `denial`."""
        return denial(self.registry, self.repository, what, reply)

    def check(self, reply: Reply, digest: str) -> None:
        """Raises DigestMismatch where the registry calls what it has by another digest."""
        named = reply.headers.get("docker-content-digest", digest)
        if named.startswith("sha256:") and named != digest:
            raise DigestMismatch(
                f"{self.registry.name}/{self.repository} says it has {named[:80]} where {digest} "
                "was pushed; the registry, or something before it, changes what it is given"
            )

    def wait(self, seconds: float) -> None:
        """Raises Cancelled when told to stop meanwhile."""
        if self._stop.wait(seconds):
            raise Cancelled(STOPPED)


class _Upload:
    """One blob on its way."""

    def __init__(self, pusher: BlobPusher, reader: LayerReader, digest: str | None) -> None:
        self._pusher = pusher
        self._reader = reader
        self._digest = digest
        self._chunk_bytes = pusher.chunk_bytes
        self._what = f"push {reader.layer.name} ({reader.size_bytes} bytes)"
        self._session: Session | None = None
        self._confirmed = 0  # the most bytes that the registry ever said it had
        self._finishing = False
        self._mismatches = 0

    def run(self) -> str:
        """See BlobPusher.send."""
        failures = best = 0
        while True:
            try:
                return self._go_on()
            except SourceUnavailable as error:
                if self._confirmed > best:
                    best, failures = self._confirmed, 0
                failures += 1
                if failures > RETRIES_MAX:
                    raise
                if failures > 1 and not self._chunk_bytes:
                    self._chunk_bytes = FALLBACK_CHUNK_BYTES  # what limits bodies may just hang up
                wait_s = min(BACKOFF_S_MAX, BACKOFF_S * 2**failures) * random.uniform(0.5, 1)
                self._pusher.wait(max(wait_s, min(error.retry_after_s or 0.0, BACKOFF_S_MAX)))

    def _go_on(self) -> str:
        """From where the registry is to the end."""
        digest = self._known_digest()
        if self._finishing and digest and self._pusher.has(digest):
            return digest  # only the answer was lost
        if digest and self._sent_at_once(digest):
            return digest
        session = self._session
        if session is not None and session.doubtful:
            session = self._asked(session)
        if session is None:
            session = self._session = self._pusher.begin(self._what)
        session.doubtful = True  # until the end: what fails leaves it so
        while session.offset < self._reader.size_bytes and not self._goes_whole(session):
            self._patch(session)
        return self._finish(session)

    def _known_digest(self) -> str | None:
        if self._digest is None and self._reader.hashed_bytes == self._reader.size_bytes:
            self._digest = self._reader.digest()
        return self._digest

    def _sent_at_once(self, digest: str) -> bool:
        if not self._pusher.takes_single_posts or self._reader.size_bytes > SINGLE_POST_BYTES_MAX:
            return False
        data = bytearray()
        while len(data) < self._reader.size_bytes:
            data += self._reader.read_at(len(data), SINGLE_POST_BYTES_MAX)
        return self._reader.digest() == digest and self._pusher.post(digest, bytes(data))

    def _goes_whole(self, session: Session) -> bool:
        """Whether the PUT that ends the session can carry all of it."""
        chunk = self._chunk(session)
        fits = not chunk or self._reader.size_bytes <= chunk
        return session.offset == 0 and fits and self._known_digest() is not None

    def _chunk(self, session: Session) -> int:
        return max(self._chunk_bytes, session.chunk_min_bytes) if self._chunk_bytes else 0

    def _asked(self, session: Session) -> Session | None:
        """How far the registry has come. None: it does not know, or has nothing worth keeping."""
        reply = self._pusher.ask("GET", session.url)
        passing = reply.status in {408, 429} or reply.status >= 500  # noqa: PLR2004
        if passing:
            raise self._pusher.denied(self._what, reply)
        reached = _reached(reply) if reply.status in _ACCEPTED else None
        # `0-0` is also how an empty session is described.
        if reached is None or not 1 < reached <= self._reader.hashed_bytes:
            self._session = None
            return None
        _follow(session, reply, self._pusher)
        session.offset = reached
        self._confirmed = max(self._confirmed, reached)
        return session

    def _patch(self, session: Session) -> None:
        """Send the next bytes: all there are, or a chunk."""
        start, end = session.offset, self._reader.size_bytes
        chunk = self._chunk(session)
        headers = dict(_OCTETS)
        if chunk or start:  # as Docker does, a whole blob goes without: every registry knows that
            end = min(end, start + chunk) if chunk else end
            headers["Content-Range"] = f"{start}-{end - 1}"
        reply = self._pusher.ask("PATCH", session.url, headers=headers, data=self._body(start, end))
        if reply.status not in _ACCEPTED:
            raise self._refused(reply)
        _follow(session, reply, self._pusher)
        reached = _reached(reply) or end
        if not start < reached <= min(end, self._reader.hashed_bytes):
            self._session = None
            raise SourceUnavailable(
                f"cannot {self._what}: {self._pusher.registry.name} lost count of what it was sent"
            )
        session.offset = reached
        self._confirmed = max(self._confirmed, reached)

    def _finish(self, session: Session) -> str:
        digest = self._digest or self._reader.digest()
        self._reader.check_unchanged()
        self._finishing = True
        url = f"{session.url}{'&' if '?' in session.url else '?'}digest={quote(digest, safe='')}"
        body = self._body(session.offset, self._reader.size_bytes)
        reply = self._pusher.ask("PUT", url, headers=_OCTETS, data=body)
        if reply.status in _ACCEPTED:
            self._pusher.check(reply, digest)
            return digest
        if "DIGEST_INVALID" in codes(reply):
            raise self._mismatched()
        raise self._refused(reply)

    def _body(self, start: int, end: int) -> Body:
        if start == end:
            return b""
        return cast("IO[bytes]", self._reader.stretch(start, end))  # read, tell and len of it

    def _mismatched(self) -> ModelcacheError:
        """Bytes arrived that are not those of the digest. Once may be chance, or an old digest."""
        self._session, self._finishing = None, False
        self._reader.check_unchanged()
        self._digest = None
        self._mismatches += 1
        where = f"{self._pusher.registry.name}/{self._pusher.repository}"
        if self._mismatches > 1:
            return DigestMismatch(f"cannot {self._what}: {where} received other bytes, twice")
        return SourceUnavailable(f"cannot {self._what}: {where} received other bytes")

    def _refused(self, reply: Reply) -> ModelcacheError:
        """The error for an answer to PATCH or PUT; and whether the session is worth keeping."""
        registry = self._pusher.registry.name
        if reply.status == 401:  # noqa: PLR2004 - POST was allowed, so a token has grown old
            return CredentialsExpired(
                f"cannot {self._what}: {registry} refuses its own token (401); run docker login "
                f"{registry}"
            )
        if reply.status == 416:  # noqa: PLR2004 - it stands elsewhere: it will be asked where
            return SourceUnavailable(f"cannot {self._what}: {registry} is at another offset (416)")
        if reply.status in {404, 410} or codes(reply) & _LOST:
            self._session = None
            return SourceUnavailable(f"cannot {self._what}: {registry} lost the upload session")
        if reply.status == 413:  # noqa: PLR2004
            self._session = None
            sent = self._chunk_bytes or self._reader.size_bytes
            if sent > FALLBACK_CHUNK_BYTES:
                self._chunk_bytes = FALLBACK_CHUNK_BYTES
                return SourceUnavailable(f"cannot {self._what}: {registry} wants less at a time")
        return self._pusher.denied(self._what, reply)


def _session(reply: Reply, pusher: BlobPusher) -> Session:
    session = Session("")
    _follow(session, reply, pusher)
    if not session.url:
        raise SourceUnavailable(f"{pusher.registry.name} begins an upload without saying where")
    with suppress(ValueError):
        session.chunk_min_bytes = max(0, int(reply.headers.get("oci-chunk-min-length", "0")))
    return session


def _follow(session: Session, reply: Reply, pusher: BlobPusher) -> None:
    """Each answer may say anew where the session is."""
    location = reply.headers.get("location")
    if location:
        session.url = pusher.registry.address(location).url


def _reached(reply: Reply) -> int | None:
    """The number of bytes that a Range header says have arrived."""
    match = _RANGE.fullmatch(reply.headers.get("range", "").strip())
    return int(match[1]) + 1 if match else None
