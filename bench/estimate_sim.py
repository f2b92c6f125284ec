"""Predicted starts in the simulator: the agent's own knowledge and measuring, in virtual time.

Worlds of a few nodes follow each other; in each some of four agents start the same model, of a size
drawn anew, alone or with others that have it or fetch it. Half-way all links change, in the middle
of transfers; in one world of twelve a node dies. What an agent learns it keeps for the next world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelcache.agent.foresight.knowledge import Knowledge
from modelcache.agent.measuring import Measuring
from modelcache.forecast.estimate import Needs, Speeds
from modelcache.sim import Faults, ModelShape, NodeShape, OriginShape, Scenario
from modelcache.sim.node import Node
from modelcache.sim.world import World

AGENTS: Final = 4
STARTS: Final = 260
GBIT: Final = 1e9 / 8
BEFORE: Final = 25 * GBIT
AFTER: Final = 10 * GBIT
TICK_S: Final = 0.1  # as often as a pull tells how far it is
KILL_EVERY: Final = 12  # worlds
MODEL: Final = "model"
_ORIGIN: Final = "https://origin.example/m"


@dataclass
class Predictor:
    """What one agent knows."""

    number: int
    measuring: Measuring = field(default_factory=Measuring)
    knowledge: Knowledge = field(init=False)

    def __post_init__(self) -> None:
        """A store is not needed: nothing is kept."""
        declared = Speeds(origin_bytes_s=BEFORE)
        self.knowledge = Knowledge(Path("/nowhere"), self.measuring, declared)


@dataclass(frozen=True)
class Seat:
    """An agent in one world."""

    predictor: Predictor
    node: Node
    starts_s: float


def simulated(seed: int = 1) -> dict[str, Any]:
    """All starts, and what was said of them."""
    chance = random.Random(seed)
    predictors = [Predictor(number) for number in range(AGENTS)]
    starts: list[dict[str, Any]] = []
    epoch_s, world, changed = 0.0, 0, False
    while len(starts) < STARTS:
        middle = not changed and len(starts) >= STARTS // 2
        rate = AFTER if changed else BEFORE
        took_s = _world(chance, predictors, starts, epoch_s, rate, world=world, change=middle)
        changed = changed or middle
        epoch_s += took_s + 10.0
        world += 1
    return {"how": "simulated", "seed": seed, "starts": starts}


def _world(
    chance: random.Random,
    predictors: list[Predictor],
    starts: list[dict[str, Any]],
    epoch_s: float,
    rate: float,
    *,
    world: int,
    change: bool,
) -> float:
    """One model on some agents; how long that took."""
    fetchers = chance.randint(1, AGENTS)
    holders = chance.choice([0, 0, 1, 2])
    shape = ModelShape(blobs=chance.randint(4, 24), blob_bytes=4 * 10**9, chunk_bytes=64 << 20)
    killed = fetchers > 1 and world % KILL_EVERY == KILL_EVERY - 1
    deaths = Faults(deaths=1, death_from_s=5.0, death_until_s=20.0) if killed else Faults()
    scenario = Scenario(
        nodes=fetchers + holders,
        holders=holders,
        seed=chance.getrandbits(32),
        model=shape,
        origin=OriginShape(rate=100 * GBIT, connection_rate=1.0 * GBIT),
        node=NodeShape(up=rate, down=rate),
        faults=deaths,
        start_spread_s=chance.choice([0.5, 20.0]),
    )
    made = World(scenario)
    chosen = chance.sample(predictors, fetchers)
    seats = [
        Seat(predictor, made.nodes[number], at_s)
        for predictor, (number, at_s) in zip(chosen, made.fates.starts.items(), strict=True)
    ]
    for seat in seats:
        made.clock.at(seat.starts_s, _freeze, (made, seats, seat, epoch_s))
    if change:
        made.clock.at(max(seat.starts_s for seat in seats) + 5.0, _change, made)
    made.run()
    starts += [_ended(seat, epoch_s, holders, fetchers, scenario) for seat in seats]
    return made.clock.now_s


def _freeze(about: tuple[World, list[Seat], Seat, float]) -> None:
    made, seats, seat, epoch_s = about
    now_s = made.clock.now_s
    size = made.scenario.model.size_bytes
    others = sum(
        each.starts_s <= now_s and each.node.finished_s is None and each.node.alive
        for each in seats
        if each is not seat
    )
    done = sum(
        each.node.finished_s is not None and each.node.alive for each in seats if each is not seat
    )
    holders = made.scenario.holders + done
    needs = Needs(size, size, holders=holders, fetchers=others, resolved=True)
    knowledge = seat.predictor.knowledge
    prediction = knowledge.predict(MODEL, needs, "https://origin.example")
    assert prediction is not None
    knowledge.freeze(MODEL, MODEL, prediction, epoch_s + now_s)
    _tick((made, seat, epoch_s))


def _tick(about: tuple[World, Seat, float]) -> None:
    made, seat, epoch_s = about
    node, now_s = seat.node, epoch_s + made.clock.now_s
    if node.finished_s is not None or not node.alive:
        seat.predictor.measuring.rests(MODEL, now_s)
        return
    received = {_ORIGIN: int(node.tally.from_origin), "peer:x": int(node.tally.from_peers)}
    seat.predictor.measuring.moved(MODEL, received, now_s)
    made.clock.after(TICK_S, _tick, about)


def _change(made: World) -> None:
    """All links are slower from now on."""
    for node in made.nodes:
        for link in (node.up, node.down):
            node.site.network.resize(link, AFTER)


def _ended(
    seat: Seat, epoch_s: float, holders: int, fetchers: int, scenario: Scenario
) -> dict[str, Any]:
    node, knowledge, measuring = seat.node, seat.predictor.knowledge, seat.predictor.measuring
    finished = node.alive and node.finished_s is not None
    at_s = node.finished_s if finished and node.finished_s is not None else seat.starts_s + 10.0
    measuring.rests(MODEL, epoch_s + at_s)
    opened = knowledge.end(MODEL, epoch_s + at_s, finished=finished)
    assert opened is not None
    if finished:
        knowledge.fetched(
            opened, "https://origin.example", resolving_s=0.0, wall_s=at_s - seat.starts_s
        )
    promise = opened.promise
    return {
        "agent": seat.predictor.number,
        "regime": promise.regime.value,
        "gigabytes": scenario.model.size_bytes / 1e9,
        "holders": holders,
        "fetchers": fetchers,
        "spread_s": scenario.start_spread_s,
        "predicted_s": round(promise.predicted_s, 3),
        "p50_s": round(promise.p50_s, 3),
        "p90_s": round(promise.p90_s, 3),
        "seconds": round(at_s - seat.starts_s, 3),
        "finished": finished,
    }
