"""Predicted starts on real agents: three hosts of their own, whose links change, and kills.

Each agent starts models of several sizes one after the other, while others hold them, fetch them,
or do neither; half-way every link gets half its rate, in the middle of whatever is under way, and
now and then an agent is killed in the middle of a start and comes back. What was predicted when a
start began, and what became of it, is what the agents themselves keep. Needs root.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from statistics import median
from time import monotonic, sleep
from typing import Any, Final

from bench.estimate_sim import simulated
from modelcache.agent import Engine
from modelcache.client import AgentClient
from modelcache.config import Settings, StoreSettings
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.wanted import ModelPhase
from modelcache.errors import ModelcacheError
from tests.servers.models import write_model
from tests.swarm.hosts import Agent, Origin
from tests.swarm.network import Network, can_make_namespaces

NODES: Final = 3
ORIGIN_MBIT_S: Final = 1000.0
BEFORE_MBIT_S: Final = 160.0
AFTER_MBIT_S: Final = 80.0
SIZES_MIB: Final = (32, 48, 64, 96)
STARTS: Final = 72  # of each agent
KILL_EVERY: Final = 20  # starts of an agent
KILL_AFTER_S: Final = 0.7
PAUSE_S: Final = 3.0  # most time between two starts of an agent
CHUNK_BYTES: Final = 4 * MIB
WAIT_S: Final = 120.0


@dataclass(frozen=True)
class Host:
    """One agent, which is started again when it was killed."""

    network: Network
    name: str
    agent: Agent


def measure(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Both halves; the simulator alone where namespaces cannot be made."""
    runs = [simulated(seed) for seed in ((1,) if quick else (1, 2, 3))]
    if can_make_namespaces():
        runs.append(_on_hosts(folder, STARTS // 4 if quick else STARTS))
    else:
        print("estimate: needs root, ip and tc for real agents")
    for run in runs:
        print(run["how"], summary(run["starts"]))
    return runs


def _on_hosts(folder: Path, starts: int) -> dict[str, Any]:
    root = folder / "origin"
    rmtree(root, ignore_errors=True)
    for size in SIZES_MIB:
        write_model(root / f"model-{size}", size * MIB, shards=2)
    names = [f"node{number}" for number in range(NODES)]
    settings = f"[store]\nchunk_bytes = {CHUNK_BYTES}"
    try:
        with (
            Network(["origin", *names], mbit_s=BEFORE_MBIT_S) as network,
            Origin(network, "origin", root) as origin,
            ExitStack() as stack,
        ):
            network.shape("origin", ORIGIN_MBIT_S)
            agents = [
                stack.enter_context(Agent(network, name, names, settings=settings))
                for name in names
            ]
            hosts = [Host(network, name, agent) for name, agent in zip(names, agents, strict=True)]
            refs = [parse_ref(f"{origin.url}/model-{size}/") for size in SIZES_MIB]
            Work(hosts, refs, starts).run()
            return {"how": "hosts", "seed": 0, "starts": list(_kept(hosts))}
    finally:
        rmtree(root, ignore_errors=True)


class Work:
    """Every agent's starts, one after the other; all links change when half of them have begun."""

    def __init__(self, hosts: Sequence[Host], refs: Sequence[Ref], starts: int) -> None:
        self._hosts = hosts
        self._refs = refs
        self._starts = starts
        self._begun = 0
        self._counting = threading.Lock()
        self._failed: list[BaseException] = []

    def run(self) -> None:
        """All of it. Raises what one of the agents' threads has raised."""
        threads = [
            threading.Thread(target=self._one_by_one, args=(number,))
            for number in range(len(self._hosts))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def _one_by_one(self, number: int) -> None:
        chance = random.Random(number)
        try:
            for count in range(self._starts):
                self._count()
                killed = count % KILL_EVERY == KILL_EVERY - 1
                sleep(chance.uniform(0.0, PAUSE_S))
                _start(self._hosts[number].agent, chance.choice(self._refs), killed=killed)
        except BaseException as error:  # noqa: BLE001 - told by the caller's thread
            self._failed.append(error)

    def _count(self) -> None:
        with self._counting:
            self._begun += 1
            half = self._begun == self._starts * len(self._hosts) // 2
        if half:  # within what is just under way
            threading.Timer(1.0, self._change).start()

    def _change(self) -> None:
        for host in self._hosts:
            host.network.shape(host.name, AFTER_MBIT_S)


def _start(agent: Agent, ref: Ref, *, killed: bool) -> None:
    """One model, which the agent may have had before, as if it had never been there."""
    with AgentClient(str(agent.socket)) as client:
        client.release(ref, None)
        _forget(agent, ref)
        client.want(ref)
        if killed:
            client.wait(ref, KILL_AFTER_S)
    if killed:
        agent.kill()
        agent.socket.unlink(missing_ok=True)
        agent.start()
    with AgentClient(str(agent.socket)) as client:
        until_s = monotonic() + WAIT_S
        while not client.node().ready and monotonic() < until_s:
            sleep(0.05)  # it answers before it has looked at what was wanted
        status = client.wait(ref, WAIT_S)
    if status.phase is not ModelPhase.WARM:
        raise RuntimeError(f"a start came to no end: {status}")


def _forget(agent: Agent, ref: Ref) -> None:
    settings = Settings()
    store = StoreSettings(path=agent.store, chunk_bytes=CHUNK_BYTES)
    with Engine(replace(settings, store=store)) as engine:
        until_s = monotonic() + WAIT_S
        while True:
            try:
                engine.remove(engine.store.find(str(ref)), force=True)
            except ModelcacheError:
                return
            if monotonic() > until_s:
                raise RuntimeError(f"{ref} cannot be removed")


def _kept(hosts: Sequence[Host]) -> Iterator[dict[str, Any]]:
    """What the agents have written down."""
    names = ("model", "tier", "regime", "predicted_s", "p50_s", "p90_s", "seconds", "finished")
    for host in hosts:
        plain = json.loads((host.agent.store / "forecast.json").read_bytes())
        for values in plain["score"]["starts"]:
            yield {"agent": host.name, **dict(zip(names, values, strict=True))}


# For RESULTS.md


def summary(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median error of the p50, and how often the p50 and the p90 came true."""
    fetched = [start for start in starts if start.get("tier") != "warm"]
    ended = [start for start in fetched if start["finished"]]
    errors = [abs(start["p50_s"] - start["seconds"]) / start["seconds"] for start in ended]

    def covered(name: str) -> float:
        told = [s for s in fetched if s["finished"] or s["seconds"] > s[name]]
        return sum(s["seconds"] <= s[name] for s in told) / len(told)

    return {
        "starts": len(fetched),
        "abandoned": len(fetched) - len(ended),
        "seconds": median(start["seconds"] for start in ended),
        "error": median(errors),
        "p50": covered("p50_s"),
        "p90": covered("p90_s"),
    }


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each run and each half of it, and for each case of where bytes come from."""
    table = []
    for run in runs:
        starts = run["starts"]
        kind, number = ("run", run["seed"] + 1) if run["how"] == "hosts" else ("seed", run["seed"])
        where = f"{run['how']}, {kind} {number}"
        parts = {"all": starts}
        if run["how"] == "hosts":
            by_agent = [
                [start for start in starts if start["agent"] == agent]
                for agent in dict.fromkeys(start["agent"] for start in starts)
            ]
            parts["first half"] = [s for own in by_agent for s in own[: len(own) // 2]]
            parts["second half"] = [s for own in by_agent for s in own[len(own) // 2 :]]
        else:
            parts["first half"] = starts[: len(starts) // 2]
            parts["second half"] = starts[len(starts) // 2 :]
        for regime in dict.fromkeys(start["regime"] for start in starts):
            parts[regime] = [start for start in starts if start["regime"] == regime]
        for which, chosen in parts.items():
            told = summary(chosen)
            table.append(
                [
                    where,
                    which,
                    f"{told['starts']:.0f}",
                    f"{told['abandoned']:.0f}",
                    f"{told['seconds']:.1f}",
                    f"{told['error']:.1%}",
                    f"{told['p50']:.0%}",
                    f"{told['p90']:.0%}",
                ]
            )
    return table


def targets(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """What predictions were to reach, and did; of several seeds the worst counts."""
    found: list[tuple[str, str, str, bool]] = []
    for how, where in (("simulated", "simulated starts"), ("hosts", "starts on hosts")):
        told = [summary(run["starts"]) for run in runs if run["how"] == how]
        if not told:
            continue
        error = max(each["error"] for each in told)
        low, high = min(each["p90"] for each in told), max(each["p90"] for each in told)
        shown = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
        found += [
            (f"{where}: median error", "15 %", f"{error:.1%}", error < 0.15),
            (f"{where}: within p90", "85 to 95 %", shown, low >= 0.85 and high <= 0.95),
        ]
    return found
