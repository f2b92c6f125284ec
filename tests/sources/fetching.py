"""Reading what a source located, over the engine's own HTTP client, for tests of sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.domain.manifests import File
from modelcache.domain.ranges import ByteRange
from modelcache.sources.source import HttpTarget, LocalTarget, Source, Target
from modelcache.transfer.bodies import check_length
from modelcache.transfer.http1 import HttpConnection


@dataclass(frozen=True)
class Answer:
    """A response; a local file answers 200."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def successful(self) -> bool:
        return self.status in {200, 206}


def ask(target: Target, span: ByteRange | None = None) -> Answer:
    """One GET, with a Range header if a span is given."""
    if isinstance(target, LocalTarget):
        content = Path(target.path).read_bytes()
        return Answer(200, content[span.start : span.end] if span else content)
    assert isinstance(target, HttpTarget)
    connection = HttpConnection(target, connect_timeout_s=10, stall_timeout_s=10)
    try:
        shift = target.window[0] if target.window else 0
        wanted = f"bytes={shift + span.start}-{shift + span.end - 1}" if span else None
        connection.send(target, wanted)
        head = connection.read_head()
        body = bytearray()
        piece = memoryview(bytearray(1 << 20))
        while size := connection.read_into(piece):
            body += piece[:size]
        return Answer(head.status, bytes(body), head.headers)
    finally:
        connection.close()


def read(source: Source, file: File, span: ByteRange | None = None) -> Answer:
    """Read as the engine does, every check included. Raises what it would."""
    target = source.locate(file)
    window = target.window if isinstance(target, HttpTarget) else None
    if window is not None and span is None:
        span = ByteRange(0, file.size_bytes)
    answer = ask(target, span)
    if not answer.successful:
        raise source.refusal(file, answer.status, answer.headers, answer.body)
    source.check_pin(file, answer.headers)
    if answer.headers:
        check_length(file, span, answer.headers, len(answer.body), window=window)
    return answer
