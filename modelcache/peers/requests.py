"""What a peer's request says, read strictly: what is odd is refused and the connection closed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelcache.domain.manifests import BlobId, is_blob_id
from modelcache.domain.members import NodeId, is_node_id
from modelcache.domain.ranges import ByteRange
from modelcache.errors import CorruptData, NotFound, UsageError
from modelcache.peers.signing import NO_BODY, Scope
from modelcache.peers.wire import parse_head

NODE: Final = "x-modelcache-node"
TO: Final = "x-modelcache-to"
WAIT: Final = "x-modelcache-wait"
PRIORITY: Final = "x-modelcache-priority"
DIGEST: Final = "x-modelcache-digest"
HASHES: Final = "x-modelcache-xxh3"
PRIORITY_MAX: Final = 100
PRIORITY_UNSAID: Final = 50
BLOBS_PATH: Final = "/v1/blobs/"
ANNOUNCE_PATH: Final = "/v1/announce"
RESOLVE_PATH: Final = "/v1/resolve"
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_LINE: Final = re.compile(r"(GET|HEAD|POST) (/[!-~]{0,1023}) HTTP/1\.([01])")
_METHODS: Final = re.compile(r"[A-Z]{1,20} ")
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")
_SECONDS: Final = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request's head. wait_s: how long the asker is willing to wait for what it wants."""

    method: str
    path: str
    fields: Mapping[str, str]
    node: NodeId
    wait_s: float
    priority: int
    keep: bool

    @classmethod
    def parse(cls, head: bytes) -> Request:
        """Raises UsageError, with a message that says what is wrong."""
        try:
            line, fields = parse_head(head)
        except CorruptData as error:
            raise UsageError(error.message) from error
        match = _LINE.fullmatch(line)
        if match is None:
            known = "methods are GET, HEAD and POST" if _METHODS.match(line) else "not HTTP/1.1"
            raise UsageError(f"the request's first line is not understood: {known}")
        if match[1] != "POST" and not fields.keys().isdisjoint(_FRAMING):
            raise UsageError("only POST has a body")  # else it would be read as the next request
        node = fields.get(NODE, "")
        if not is_node_id(node):
            raise UsageError("X-Modelcache-Node must name the node that asks")
        return cls(
            match[1],
            match[2],
            fields,
            NodeId(node),
            _wait_s(fields.get(WAIT, "0")),
            _priority(fields.get(PRIORITY)),
            match[3] == "1" and fields.get("connection", "").lower() != "close",
        )

    @property
    def scope(self) -> Scope:
        """What its signature must cover. Raises UsageError."""
        digest = fields_digest(self.fields) if self.method == "POST" else NO_BODY
        return Scope(self.method, self.path, self.node, self.to, digest)

    @property
    def to(self) -> str:
        """The node it is meant for; empty where the asker does not know. Raises UsageError."""
        to = self.fields.get(TO, "")
        if to and not is_node_id(to):
            raise UsageError("X-Modelcache-To must name the node that is asked")
        return to

    def blob(self) -> BlobId:
        """The blob that the path names. Raises NotFound."""
        name = self.path.removeprefix(BLOBS_PATH)
        if not self.path.startswith(BLOBS_PATH) or not is_blob_id(name):
            raise NotFound("there is nothing under this path")
        return BlobId(name)


def fields_digest(fields: Mapping[str, str]) -> str:
    """The SHA-256 that a body is announced with, NO_BODY without one. Raises UsageError."""
    digest = fields.get(DIGEST, NO_BODY)
    if digest != NO_BODY and not _DIGEST.fullmatch(digest):
        raise UsageError("X-Modelcache-Digest must be the SHA-256 of the body, in hex")
    return digest


@dataclass(frozen=True, slots=True)
class RangeAsked:
    """One range of a file whose size the asker need not know; half-open. See `within`."""

    start: int = 0
    end: int | None = None
    last: int | None = None  # of a suffix: how many bytes from the end

    @classmethod
    def parse(cls, text: str) -> RangeAsked:
        """From the value of a Range header. Raises UsageError; several ranges are not given."""
        match = _RANGE.fullmatch(text)
        if match is None:
            raise UsageError("Range must be one range of bytes, as in bytes=0-16777215")
        if match[3] is not None:
            return cls(last=int(match[3]))
        start = int(match[1])
        if match[2] is None:
            return cls(start)
        if int(match[2]) < start:
            raise UsageError("Range ends before it starts")
        return cls(start, int(match[2]) + 1)

    def span(self) -> ByteRange | None:
        """The range, where that can be said without knowing the file's size."""
        return None if self.end is None else ByteRange(self.start, self.end)

    def within(self, total_bytes: int) -> ByteRange | None:
        """What of the file it is; None if nothing (416)."""
        if self.last is not None:
            span = ByteRange(max(0, total_bytes - self.last), total_bytes)
        else:
            end = total_bytes if self.end is None else min(self.end, total_bytes)
            if self.start >= end:
                return None
            span = ByteRange(self.start, end)
        return span if span.size_bytes else None


def _wait_s(text: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise UsageError("X-Modelcache-Wait must be seconds")
    return float(text)


def _priority(text: str | None) -> int:
    if text is None:
        return PRIORITY_UNSAID
    if not text.isascii() or not text.isdigit() or len(text) > len(str(PRIORITY_MAX)):
        raise UsageError(f"X-Modelcache-Priority must be 0 to {PRIORITY_MAX}")
    return min(int(text), PRIORITY_MAX)
