"""A simulated node: what decides for it, and what it has.

It carries out actions and feeds back events, as `modelcache.transfer.engine` does. How it reads
from others is in `reading`, how it answers them in `serving`, what nodes tell each other in
`telling`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ChunkGrid
from modelcache.planner import (
    Action,
    Announce,
    BlobAdded,
    BlobDropped,
    BlobsAdded,
    Cancel,
    Curtail,
    Doubted,
    Event,
    Failure,
    Fetch,
    Finish,
    Forget,
    GiveUp,
    Hasten,
    Paused,
    Quarantine,
    SourceId,
    TimerDue,
    Wake,
    peer_source,
)
from modelcache.sim.clock import Clock
from modelcache.sim.network import Link, Network
from modelcache.sim.origin import Origin
from modelcache.sim.reading import Reader
from modelcache.sim.scenario import Scenario
from modelcache.sim.serving import Server
from modelcache.sim.shelf import Copy
from modelcache.sim.telling import Teller

ORIGIN: Final = SourceId("https://origin.example")


class Policy(Protocol):
    """What decides: the planner, or what it is compared with."""

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """As `Planner.handle`."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What all nodes of a run share."""

    scenario: Scenario
    clock: Clock
    network: Network
    origin: Origin


@dataclass(slots=True)
class Tally:
    """What a node has done. Bytes, also of chunks that did not come whole."""

    from_origin: float = 0.0
    from_peers: float = 0.0
    sent: float = 0.0
    wasted: float = 0.0  # chunks that were there already, or did not come whole
    hedges: int = 0
    audits: int = 0
    quarantines: int = 0
    lies_found: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    planned: int = 0  # events the planner was told


class Node:
    """See the module."""

    def __init__(self, name: NodeId, zone: int, site: Site, up: float, down: float) -> None:
        self.name = name
        self.zone = zone
        self.source = peer_source(name)
        self.site = site
        self.up = Link(f"{name} up", up)
        self.down = Link(f"{name} down", down)
        self.zone_links: tuple[Link, Link] | None = None  # out of and into it, where bounded
        self.policy: Policy | None = None  # of a node that fetches
        self.cell: tuple[Node, ...] = ()  # the others that it shares chunks with
        self.peers: dict[NodeId, Node] = {}  # whom it can ask
        self.copies: dict[BlobId, Copy] = {}
        self.unfinished: dict[BlobId, None] = {}
        self.failed: dict[BlobId, Failure] = {}
        self.alive = True
        self.started_s: float | None = None
        self.finished_s: float | None = None
        self.tally = Tally()
        self.reader = Reader(self)
        self.server = Server(self)
        self.teller = Teller(self)
        self._wake_s = inf
        self._alarm_s = inf  # the earliest moment at which the clock calls

    def have(self, blobs: Iterable[tuple[BlobId, ChunkGrid]]) -> None:
        """The blobs are here, complete."""
        for blob, grid in blobs:
            self.copies[blob] = Copy(blob, grid, complete=True)

    def start(self, blobs: tuple[tuple[BlobId, ChunkGrid], ...]) -> None:
        """The node wants these blobs from now on; first it hears what its cell has."""
        if not self.alive:
            return
        self.started_s = self.site.clock.now_s
        for blob, grid in blobs:
            self.copies[blob] = Copy(blob, grid)
            self.unfinished[blob] = None
        added = BlobsAdded(tuple(BlobAdded(blob, grid, (ORIGIN,)) for blob, grid in blobs))
        if not self.cell:
            self.feed(added)
            return
        self.feed(Paused(True, fully=True))
        self.feed(added)
        self.teller.introduce()

    def die(self) -> None:
        """From now on the node does nothing, and answers nothing."""
        self.alive = False
        self.reader.stop()
        self.server.die()

    def feed(self, event: Event) -> None:
        """Tell the planner, do what it says."""
        if self.policy is None or not self.alive:
            return
        self.tally.planned += 1
        for action in self.policy.handle(event, self.site.clock.now_s):
            self._perform(action)

    def _perform(self, action: Action) -> None:  # noqa: C901 - a table
        match action:
            case Fetch():
                self.reader.begin(action)
            case Cancel(attempt):
                self.reader.cancel(attempt)
            case Curtail(attempt):
                self.reader.curtail(attempt)
            case Hasten():
                pass  # nobody reads here
            case Announce():
                self.teller.announce(tuple(self.unfinished))
            case Finish(blob):
                self.site.clock.after(self.site.scenario.verify_s, self._verify, blob)
            case Forget(blob, chunks):
                self.copies[blob].lose(chunks)
            case GiveUp(blob, failure):
                self.failed[blob] = failure
                self.let_go(blob)
            case Quarantine(source, until_s, lied):
                self.tally.quarantines += 1
                self.tally.lies_found += lied
                self.teller.hear_again(source, until_s)
            case Wake(at_s):
                self._wake_s = at_s
                self._set_alarm()

    def _set_alarm(self) -> None:
        """Let the clock call in time; when it calls too early it is asked again."""
        if self._wake_s < self._alarm_s:
            self._alarm_s = self._wake_s
            self.site.clock.at(self._alarm_s, self._woken, self._alarm_s)

    def _woken(self, alarm_s: float) -> None:
        if alarm_s == self._alarm_s:
            self._alarm_s = inf
        if self.site.clock.now_s >= self._wake_s:
            self._wake_s = inf
            self.feed(TimerDue())
        self._set_alarm()

    def _verify(self, blob: BlobId) -> None:
        """Ask the origin's checksum."""
        copy = self.copies[blob]
        if not self.alive or blob not in self.unfinished or not all(copy.stored):
            return
        if copy.wrong:
            self.feed(Doubted(blob))
            return
        copy.complete = True
        self.let_go(blob)
        self.feed(BlobDropped(blob))
        self.server.completed(copy)
        self.teller.announce((blob,))

    def let_go(self, blob: BlobId) -> None:
        """Nothing is left to do for a blob."""
        self.unfinished.pop(blob, None)
        if not self.unfinished and self.finished_s is None:
            self.finished_s = self.site.clock.now_s
