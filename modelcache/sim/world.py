"""Builds what a scenario describes, lets it run, and says what came of it."""

from __future__ import annotations

import random
from typing import Final

from modelcache.domain.manifests import BlobId
from modelcache.domain.members import Member, NodeId, cell_of
from modelcache.domain.ranges import ChunkGrid
from modelcache.planner import NOBODY, Planner
from modelcache.sim.baselines import Directory, FromSeed, RandomChoice, Window
from modelcache.sim.clock import Clock
from modelcache.sim.faults import Fates
from modelcache.sim.network import Link, Network
from modelcache.sim.node import ORIGIN, Node, Policy, Site
from modelcache.sim.origin import Origin
from modelcache.sim.outcome import NodeOutcome, Outcome
from modelcache.sim.scenario import Scenario, Way

_PORT: Final = 9871


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario to its end.

    Raises AssertionError if nodes are still without their model when nothing is left to happen, or
    when `horizon_s` has passed: a fault of the planner's, or of the simulator's.
    """
    world = World(scenario)
    world.run()
    return world.outcome()


class World:
    """One run; use once. `nodes` can be looked at between steps."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        chance = random.Random(scenario.seed)
        self.clock = Clock()
        self._network = Network(self.clock)
        throttling = scenario.faults.throttling
        self.origin = Origin(
            scenario.origin, throttling, self.clock, random.Random(chance.getrandbits(64))
        )
        fetching = range(scenario.holders, scenario.nodes)
        self.fates = Fates.draw(scenario.faults, fetching, scenario.start_spread_s, chance)
        self.blobs = self._name_blobs()
        self.nodes = [self._build(number) for number in range(scenario.nodes)]
        self.cells: list[list[Node]] = []
        self._bound_zones()
        self._form_cells()
        self._equip(chance)

    def run(self) -> None:
        """See `simulate`."""
        for number, at_s in self.fates.starts.items():
            self.clock.at(at_s, self._start, self.nodes[number])
        for number, at_s in self.fates.deaths.items():
            self.clock.at(at_s, self._die, self.nodes[number])
        waiting = [self.nodes[number] for number in self.fates.starts]
        while waiting:
            if not self.clock.step() or self.clock.now_s > self.scenario.horizon_s:
                names = ", ".join(node.name for node in waiting[:8])
                raise AssertionError(f"{names} wait for ever, seed {self.scenario.seed}")
            while waiting and (waiting[-1].finished_s is not None or not waiting[-1].alive):
                waiting.pop()

    def outcome(self) -> Outcome:
        """What came of it."""
        fetchers = [self.nodes[number] for number in self.fates.starts]
        cell_of_node = {
            node.name: number for number, cell in enumerate(self.cells) for node in cell
        }
        tallies = [node.tally for node in self.nodes]
        failures: dict[str, int] = {}
        for tally in tallies:
            for code, count in tally.failures.items():
                failures[code] = failures.get(code, 0) + count
        return Outcome(
            nodes=tuple(
                _node_outcome(
                    self.nodes[number],
                    cell=cell_of_node[self.nodes[number].name],
                    straggler=number in self.fates.stragglers,
                )
                for number in self.fates.starts
            ),
            sent_by_holders=sum(tally.sent for tally in tallies[: self.scenario.holders]),
            wasted_bytes=sum(tally.wasted for tally in tallies),
            hedges=sum(tally.hedges for tally in tallies),
            audits=sum(tally.audits for tally in tallies),
            quarantines=sum(tally.quarantines for tally in tallies),
            lies_found=sum(tally.lies_found for tally in tallies),
            requests_at_origin=self.origin.requests,
            refused_by_origin=self.origin.refused,
            failures=dict(sorted(failures.items())),
            gave_up={
                node.name: next(iter(node.failed.values())).code for node in fetchers if node.failed
            },
            events=self.clock.happened,
            planned=sum(tally.planned for tally in tallies),
        )

    # Building

    def _name_blobs(self) -> tuple[tuple[BlobId, ChunkGrid], ...]:
        """Names depend on the seed, so that each seed makes another ring."""
        model, seed = self.scenario.model, self.scenario.seed
        large = ChunkGrid(model.blob_bytes, model.chunk_bytes)
        small = ChunkGrid(model.small_blob_bytes, model.chunk_bytes)
        blobs = [(BlobId(f"large-{seed}-{number}"), large) for number in range(model.blobs)]
        blobs += [(BlobId(f"small-{seed}-{number}"), small) for number in range(model.small_blobs)]
        return tuple(blobs)

    def _build(self, number: int) -> Node:
        shape = self.scenario.node
        factor = self.fates.stragglers.get(number, 1.0)
        site = Site(self.scenario, self.clock, self._network, self.origin)
        zone = number % self.scenario.zones
        node = Node(NodeId(f"node-{number:04}"), zone, site, shape.up * factor, shape.down * factor)
        node.server.lies = self.fates.liars.get(number)
        if number < self.scenario.holders:
            node.have(self.blobs)
        return node

    def _bound_zones(self) -> None:
        rate = self.scenario.zone_rate
        if rate == float("inf"):
            return
        links = [
            (Link(f"zone {zone} out", rate), Link(f"zone {zone} in", rate))
            for zone in range(self.scenario.zones)
        ]
        for node in self.nodes:
            node.zone_links = links[node.zone]

    def _form_cells(self) -> None:
        """As every node would find its own; whoever is compared with us has no cells."""
        if self.scenario.way is not Way.SWARM:
            self.cells = [self.nodes]
            return
        by_name = {node.name: node for node in self.nodes}
        members = {node.name: Member(node.name, _PORT, str(node.zone)) for node in self.nodes}
        placed: dict[NodeId, None] = {}
        for node in self.nodes:
            if node.name in placed:
                continue
            mine = members[node.name]
            names = sorted([node.name, *(NodeId(m.host) for m in cell_of(mine, members.values()))])
            placed |= dict.fromkeys(names)
            self.cells.append([by_name[name] for name in names])

    def _equip(self, chance: random.Random) -> None:
        """Give nodes what decides for them."""
        directory = Directory()
        for cell in self.cells:
            for node in cell:
                others = tuple(other for other in cell if other is not node)
                node.peers = {other.name: other for other in others}
                if self.scenario.way is Way.SWARM:
                    node.cell = others
        for holder in self.nodes[: self.scenario.holders]:
            for blob, grid in self.blobs:
                for chunk in range(grid.count):
                    directory.add((blob, chunk), holder.source)
        for number in self.fates.starts:
            self.nodes[number].policy = self._policy(self.nodes[number], directory, chance)

    def _policy(self, node: Node, directory: Directory, chance: random.Random) -> Policy:
        limits = self.scenario.limits
        first = self.nodes[0]
        match self.scenario.way:
            case Way.SWARM:
                return Planner(limits, me=node.name)
            case Way.RANDOM:
                mine = random.Random(chance.getrandbits(64))
                return Window(RandomChoice(ORIGIN, node.source, directory, mine))
            case Way.SINGLE_SEED if node is not first:
                return Window(FromSeed(first.source))
            case _:
                return Planner(limits, me=NOBODY)

    # What happens by fate

    def _start(self, node: Node) -> None:
        node.start(self.blobs)

    @staticmethod
    def _die(node: Node) -> None:
        node.die()


def _node_outcome(node: Node, *, cell: int, straggler: bool) -> NodeOutcome:
    ready = node.finished_s is not None and not node.failed
    return NodeOutcome(
        name=node.name,
        cell=cell,
        started_s=node.started_s or 0.0,
        ready_s=node.finished_s if ready else None,
        dead=not node.alive,
        straggler=straggler,
        from_origin=node.tally.from_origin,
        from_peers=node.tally.from_peers,
        sent=node.tally.sent,
    )
