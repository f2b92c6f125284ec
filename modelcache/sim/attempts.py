"""One attempt under way: what a worker of the transfer engine is in the real world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelcache.domain.manifests import BlobId
from modelcache.planner import Fetch
from modelcache.sim.network import Flow

if TYPE_CHECKING:
    from modelcache.sim.node import Node


class Attempt:
    """Chunks that one node reads from one source, in order."""

    __slots__ = (
        "chunks",
        "curtailed",
        "false",
        "fetch",
        "first_byte_s",
        "flow",
        "node",
        "over",
        "place",
        "server",
        "since_s",
    )

    def __init__(self, node: Node, fetch: Fetch, server: Node | None, now_s: float) -> None:
        """server: None for an origin."""
        self.node = node
        self.fetch = fetch
        self.server = server
        self.chunks = [
            (run.blob, chunk) for run in fetch.runs for chunk in range(run.first, run.end)
        ]
        self.place = 0  # of the chunk that is on its way
        self.flow: Flow | None = None  # None while the answer is waited for
        self.since_s = now_s
        self.first_byte_s = 0.0
        self.curtailed = False
        self.over = False
        self.false = False  # the chunk that comes is not what it should be

    @property
    def blob(self) -> BlobId:
        """Of the chunk that is on its way."""
        return self.chunks[self.place][0]

    @property
    def chunk(self) -> int:
        """The one that is on its way."""
        return self.chunks[self.place][1]
