"""What a pull has around it: what it shares with others, its peers, and who steers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from modelcache.agent.arriving import Arriving
from modelcache.config import Settings
from modelcache.domain.manifests import Manifest
from modelcache.domain.members import NodeId, Priority
from modelcache.domain.refs import Ref
from modelcache.sources.source import Source
from modelcache.transfer.engine import Transfer
from modelcache.transfer.jobs import BlobJob
from modelcache.transfer.shared import Shared


class Control(Protocol):
    """How somebody else steers a pull while it runs."""

    @property
    def paused(self) -> bool:
        """Whether something more urgent has the bandwidth."""
        ...

    @property
    def priority(self) -> int:
        """0 to 100; peers that are asked see it."""
        ...

    @property
    def limit_bytes_s(self) -> int:
        """Most bytes a second; 0 means no limit."""
        ...

    def attach(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called now and after every change; returns what ends that."""
        ...


class Peers(Protocol):
    """The other nodes, as a pull knows them."""

    me: NodeId

    def source(self, node: NodeId, *, priority: int) -> Source:
        """What stands for a peer. Raises SourceUnavailable for one that has left."""
        ...

    def joined(
        self, transfer: Transfer, jobs: Sequence[BlobJob], manifest: Manifest
    ) -> AbstractContextManager[Callable[[], None]]:
        """Share a transfer's chunks with others while it runs.

        What it yields tells them, and the transfer about them; to be called when the transfer
        knows its blobs, and before it asks for anything.
        """
        ...

    def resolve(
        self, ref: Ref, ask: Callable[[], Manifest], *, for_pods: bool = False
    ) -> tuple[Manifest, bool]:
        """What a ref means, as all nodes that ask now understand it.

        ask: asks the origin. for_pods: other nodes may not ask it where pods may not lead them. The
        second: whether another node has answered. Raises what `ask` raises if nobody else knows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """See the module. peers: None on a node that has none. Whatever `resolved` raises ends it."""

    shared: Shared
    peers: Peers | None = None
    control: Control | None = None
    arriving: Arriving | None = None  # where it says what it brings, for readers
    resolved: Callable[[Manifest], None] | None = None
    """Called when it is known what is to come, the model is protected, and nothing is asked for."""

    @property
    def priority(self) -> int:
        """How urgent the pull is at the moment."""
        return self.control.priority if self.control is not None else Priority.MOUNTED

    def source(self, node: NodeId) -> Source:
        """What stands for a peer; see `transfer.jobs.PeerSources`."""
        assert self.peers is not None, "a peer was planned"  # noqa: S101
        return self.peers.source(node, priority=self.priority)

    @classmethod
    def alone(cls, settings: Settings) -> Surroundings:
        """Of a pull that nobody shares anything with."""
        return cls(Shared(settings.transfer))
