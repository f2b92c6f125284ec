"""A node among others: joins the transfers of this node with its peers.

It wires: who is in the cell (`peers.membership`), what they say (`announcing`), what they may have
(`shelf`), what refs mean (`agreement`), and how much of an origin is this node's (`budget`). What
to ask of whom is the planner's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from time import monotonic
from typing import Any, Final

from modelcache.agent.engine import Engine
from modelcache.agent.swarm.active import Active, Sharing
from modelcache.agent.swarm.agreement import Agreement, first_answer, from_message
from modelcache.agent.swarm.announcing import ANSWER_S, Announcer
from modelcache.agent.swarm.budget import Budget
from modelcache.agent.swarm.door import Door
from modelcache.agent.swarm.handover import Handover
from modelcache.agent.swarm.namesakes import Namesakes
from modelcache.agent.swarm.neighbours import Neighbours
from modelcache.agent.swarm.shelf import Shelf
from modelcache.agent.swarm.sightings import Sightings
from modelcache.config import Settings
from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import Manifest, ModelId
from modelcache.domain.members import Member, NodeId, cell_of
from modelcache.domain.refs import Ref
from modelcache.domain.ring import first_of
from modelcache.errors import (
    SourceUnavailable,
)
from modelcache.peers.auth import PeerAuth
from modelcache.peers.client import PeerClient
from modelcache.peers.membership import Membership, membership_of
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.server import PeerServer
from modelcache.peers.source import PeerSource
from modelcache.planner import Quarantine, peer_of
from modelcache.sources.source import Source
from modelcache.transfer.engine import Transfer
from modelcache.transfer.jobs import BlobJob

ASKED_MAX: Final = 2  # nodes asked what a ref means before the origin is
STALE_ASKED_MAX: Final = 8  # nodes asked what it meant, when the origin does not answer
PAUSE_S: Final = 1.0  # of all nodes, when an origin asked for less and did not say how long
RESOLVE_S: Final = 60.0  # an index of ten thousand files takes a while


class Swarm:
    """See the module. Thread-safe."""

    def __init__(
        self, settings: Settings, engine: Engine, membership: Membership | None = None
    ) -> None:
        """Nothing is opened before `start`. Raises InvalidConfig.

        membership: who is in the cluster, if not what the settings name.
        """
        self.me = settings.agent.node_id()
        self._settings = settings
        self._engine = engine
        self._auth = PeerAuth.of(settings.peers)
        self._membership: Membership = membership or membership_of(settings.peers)
        self._client = PeerClient(self._auth, self.me)
        self._active = Active()
        self._neighbours = Neighbours()
        self._sightings = Sightings()
        self._life = token_hex(8)
        self._namesakes = Namesakes(self.me, self._life)
        self._shelf = Shelf(engine.store, self._active)
        self._agreement = Agreement(settings.swarm.agree_s)
        door = Door(
            engine,
            self._shelf,
            self._agreement,
            said=self._said,
            heard=self._heard,
        )
        self._server = PeerServer(settings.peers, door, self._auth, me=self.me)
        self._budget = Budget(settings.swarm, self._active, engine)
        self._announcer = Announcer(
            self._client,
            self.members,
            self._compose,
            learn=self._learn,
            failed=self._failed,
        )
        self._turning = threading.Lock()  # between staying and leaving
        self._draining = False
        self._staying = threading.Event()  # wakes up who hands over
        self._stopped = threading.Event()
        self._handover = Handover(
            engine,
            self._active,
            self._shelf,
            self._neighbours,
            self._announcer,
            say=lambda blobs, asked: self._said(blobs=blobs, asked_models=asked),
        )
        self.on_quarantine: Callable[[NodeId, bool], None] | None = None  # who, and whether it lied
        self.on_namesake: Callable[[str], None] | None = None  # what to tell people
        self.on_handed: Callable[[str], None] | None = None  # a ref that another node cannot keep

    # Life

    def start(self) -> None:
        """Listen, and let the engine's pulls know of peers. Raises StoreError, InvalidConfig."""
        self._server.start()
        self._announcer.start(self._settings.swarm.announce_s, lambda: bool(self._active.all()))
        self._engine.peers = self

    def refuse(self) -> None:
        """See daemon.Neighbourhood."""
        with self._turning:
            self._draining = True
            if not self._stopped.is_set():
                self._staying.clear()

    def hand_over(self, wait_s: float) -> bool:
        """See daemon.Neighbourhood. What pulls have brought is given only while they last."""
        return self._handover.run(monotonic() + wait_s, self._staying)

    def drain(self) -> None:
        """See daemon.Neighbourhood."""
        with self._turning:
            if not self._draining:
                return
            self._server.refuse()
        self._server.drained(self._settings.agent.shutdown_s)

    def resume(self) -> None:
        """See daemon.Neighbourhood."""
        with self._turning:
            self._draining = False
            self._staying.set()
            self._server.resume()
        for sharing in self._active.all():
            sharing.transfer.pause(paused=False)
        self._announcer.tell_all(self._said())

    def close(self) -> None:
        """Say good-bye and stop. Idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._staying.set()
        self._engine.peers = None
        self._announcer.tell_all(self._said(leaving=True))
        self._announcer.close()
        self._server.close()
        self._client.close()

    @property
    def port(self) -> int:
        """Where the peer plane listens."""
        return self._server.port

    @property
    def member(self) -> Member:
        """What others know this node by."""
        peers = self._settings.peers
        member = Member(*peers.advertised(self._server.port), peers.zone)
        if member.zone:
            return member
        known = self._membership.members()  # where it stands, others may know better
        return next((each for each in known if each.address == member.address), member)

    def members(self) -> tuple[Member, ...]:
        """The others of the cell."""
        return cell_of(
            self.member,
            self._membership.members(),
            most=self._settings.swarm.cell_members_max,
        )

    # What a pull needs (agent.surroundings.Peers)

    def source(self, node: NodeId, *, priority: int) -> Source:
        """What stands for a peer in a transfer. Raises SourceUnavailable for one that has left."""
        member = self._neighbours.member(node)
        if member is None:
            raise SourceUnavailable(f"node {node} has left")
        wait_s = self._settings.peers.wait_s
        return PeerSource(member, node, self._auth, me=self.me, wait_s=wait_s, priority=priority)

    @contextmanager
    def joined(
        self, transfer: Transfer, jobs: Sequence[BlobJob], manifest: Manifest
    ) -> Iterator[Callable[[], None]]:
        """See Peers."""
        sharing = Sharing.of(transfer, jobs, manifest)
        transfer.on_quarantine = self._quarantined
        transfer.on_stored = lambda _: self._announcer.soon()
        transfer.on_news = self._announcer.soon
        transfer.on_throttled = lambda after_s: self._throttled(sharing, after_s)
        self._active.add(sharing)
        try:
            yield self._introduce
        finally:
            self._active.remove(sharing)
            self._announcer.tell_all(self._farewell(sharing))

    def _introduce(self) -> None:
        self._announcer.tell_all()
        self._budget.apply(1 + self._neighbours.fetching())

    def resolve(
        self, ref: Ref, ask: Callable[[], Manifest], *, for_pods: bool = False
    ) -> tuple[Manifest, bool]:
        """See agent.surroundings.Peers."""
        text = str(ref)
        mine = self.member
        by_address = {member.address: member for member in self._membership.members()}
        by_address[mine.address] = mine
        ranked = [by_address[address] for address in first_of(text, by_address)]
        before = ranked[: ranked.index(mine)][:ASKED_MAX]
        asks = [self._asking(ResolveRequest(text, 0.0, for_pods=for_pods), each) for each in before]
        told = first_answer(asks)
        if told is not None:
            return told, True
        try:
            return self._agreement.answer(text, ask), False
        except SourceUnavailable:
            others = [member for member in ranked if member != mine][:STALE_ASKED_MAX]
            stale = ResolveRequest(text, 0.0, stale=True)
            known = first_answer([self._asking(stale, member) for member in others])
            if known is None:
                raise
            return known, True

    def _asking(self, request: ResolveRequest, member: Member) -> Callable[[], Manifest]:
        def ask() -> Manifest:
            # A listing may take its time, but whoever is not there is not waited for as long.
            self._client.announce(member, self._said(), timeout_s=ANSWER_S)
            return from_message(self._client.resolve(member, request, timeout_s=RESOLVE_S))

        return ask

    def _quarantined(self, action: Quarantine) -> None:
        node = peer_of(action.source)
        if node is not None and self.on_quarantine is not None:
            self.on_quarantine(node, action.lied)

    def _throttled(self, sharing: Sharing, retry_after_s: float | None) -> None:
        self._budget.throttled(sharing.origin, retry_after_s or PAUSE_S)
        self._announcer.soon()

    # News

    def _compose(self) -> Announcement:
        self._budget.apply(1 + self._neighbours.fetching())
        return self._said(blobs=self._active.holdings(), asked_models=self._active.models())

    def _farewell(self, sharing: Sharing) -> Announcement:
        """A transfer is over: what came of it is complete, or not wanted any more."""
        held = []
        for blob, job in sharing.large.items():
            holding = self._shelf.holding(blob)
            held.append(holding or job.nothing())
        complete = self._engine.store.snapshot_path(sharing.model_id) is not None
        return self._said(blobs=tuple(held), models=(sharing.model_id,) if complete else ())

    def _said(
        self,
        *,
        blobs: tuple[Holding, ...] = (),
        models: tuple[ModelId, ...] = (),
        asked_models: tuple[ModelId, ...] = (),
        leaving: bool = False,
    ) -> Announcement:
        return Announcement(
            node=self.me,
            member=self.member,
            blobs=blobs,
            models=models,
            asked_models=asked_models,
            draining=self._draining,
            leaving=leaving,
            throttled=self._budget.told(),
            life=self._life,
        )

    def _learn(self, member: Member, said: Announcement) -> None:
        """A member has answered. Its address is the one it was asked at, whatever it says."""
        self._heard(said, member)

    def _heard(self, said: Announcement, member: Member | None = None) -> None:
        node = said.node
        warning = self._namesakes.look(said, member or said.member)
        if warning is not None and self.on_namesake is not None:
            self.on_namesake(warning)
        if node == self.me:
            return  # one of our own addresses, or a namesake, whom nobody can ask for anything
        self._sightings.heard(said, monotonic(), asked=member is not None)
        if said.leaving:
            self._neighbours.left(node)
            self._active.left(node)
            return
        fetching = any(holding.state is HoldingState.FETCHING for holding in said.blobs)
        self._neighbours.heard(
            node, member or said.member, monotonic(), fetching=fetching, draining=said.draining
        )
        self._budget.heard(said.throttled)
        self._handover.heard(said.models)
        if said.handed and self.on_handed is not None and not self._draining:
            for ref in said.handed:
                self.on_handed(ref)
        for holding in said.blobs:
            self._active.told(node, holding)
        for model_id in said.models:
            self._active.has_model(node, model_id)

    def _failed(self, member: Member, trouble: str) -> None:
        lost = self._neighbours.failed(member, trouble)
        if lost is not None:
            self._active.left(lost)

    # For who predicts starts

    def who_has(self, model_id: ModelId, *, ask: bool = True) -> dict[NodeId, bool]:
        """Nodes that have all of a model (True) or fetch it (False).

        ask: ask those of the cell, for at most a second, unless that was done a moment ago.
        """
        if ask and self._sightings.to_ask(model_id, monotonic()):
            asked = (model_id, *self._active.models())
            said = self._said(blobs=self._active.holdings(), asked_models=asked)
            self._announcer.tell_all(said)
        return self._sightings.who(model_id, monotonic())

    def busy(self) -> int:
        """How many other nodes fetch something."""
        return self._sightings.busy(monotonic())

    def names(self) -> list[NodeId]:
        """Every other node that answers, and stays."""
        return self._neighbours.names()

    # For people and metrics

    def warnings(self) -> list[str]:
        """See daemon.Neighbourhood."""
        return self._namesakes.warnings()

    def counters(self) -> dict[str, float]:
        """Sums since the start, by name with unit."""
        counts = self._server.counters()
        return {
            "served_bytes": float(sum(each.served_bytes for each in counts.peers)),
            "served_requests": float(sum(each.requests for each in counts.peers)),
            "refused_requests": float(sum(sum(each.refusals.values()) for each in counts.peers)),
            "connections": float(counts.connections),
            "namesakes": float(len(self._namesakes.warnings())),
        }

    def peers(self) -> list[dict[str, Any]]:
        """One row for each other node that was ever heard."""
        served = {each.node: each for each in self._server.counters().peers}
        rows = self._neighbours.table(monotonic())
        for row in rows:
            counts = served.get(row["node"])
            row["served_bytes"] = counts.served_bytes if counts else 0
        return rows
