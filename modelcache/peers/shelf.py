"""What the peer plane's server gives out, as it sees it: the agent knows where it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ByteRange
from modelcache.peers.messages import Announcement, ResolveRequest

Gone = Callable[[], bool]
"""Whether whoever asked has gone; quick."""


def never() -> bool:
    """Of who waits for an answer whatever happens."""
    return False


@dataclass(frozen=True, slots=True)
class Piece:
    """An open file, and which of its bytes to send. Whoever has it closes it, once.

    offset, size_bytes: in the file, where a blob's byte n is byte n. total_bytes: of the blob.
    hashes: XXH3-128 of each chunk of the range, if it is cut where chunks are; else none.
    """

    fd: int
    offset: int
    size_bytes: int
    total_bytes: int
    hashes: tuple[bytes, ...] = ()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)


class Shelf(Protocol):
    """Called from many threads at once; each may raise StoreError too."""

    def open(
        self,
        blob: BlobId,
        span: ByteRange,
        *,
        wait_s: float,
        priority: int,
        node: NodeId,
        gone: Gone = never,
    ) -> Piece:
        """A range of a blob that others may have.

        Blocks up to `wait_s` for what is on its way, but not much longer than until `gone`, asked
        now and then, says that nobody waits for the answer. `span` comes from the network: it may
        reach beyond the blob's end or begin there, and then only what is within counts;
        total_bytes is right in any case. An empty span asks for just that. Raises NotHeld, NotYet.
        """
        ...

    def announce(self, said: Announcement) -> Announcement:
        """Hear what a peer has said, and answer with what is here of that."""
        ...

    def resolve(self, asked: ResolveRequest) -> bytes:
        """What a ref means, as a message that the asker understands.

        Raises NotHeld, UsageError for what is no ref, and what the ref's source raises.
        """
        ...
