"""Eight agents on hosts of their own, every link shaped alike, and the same in the simulator.

Hosts are network namespaces on this machine (`tests/swarm/network.py`), the origin is nginx behind
a link like everybody's. Times are from asking the first agent to the last node that is ready; the
agents run before. Needs root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from statistics import median
from time import perf_counter, sleep
from typing import Any, Final

from modelcache.client import AgentClient
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import ModelPhase, WantedStatus
from modelcache.sim import ModelShape, NodeShape, OriginShape, Scenario, simulate
from tests.servers.models import write_model
from tests.swarm.hosts import Agent, Origin
from tests.swarm.network import Network, can_make_namespaces

NODES: Final = 8
MBIT_S: Final = 200.0
QUEUE_S: Final = 0.01  # at each end of a link; switches of data centres have less
DEEP_QUEUE_S: Final = 0.1
CONGESTION: Final = "cubic"  # Linux's own choice and that of its distributions
SIZE_BYTES: Final = 1024 * MIB
# A model of 140 GB has thousands of production's chunks, this one 512 of the smallest that may be.
CHUNK_BYTES: Final = 2 * MIB
COARSE_CHUNK_BYTES: Final = 4 * MIB
ALONE_SHARE: Final = 8  # of the model, for nodes that do not share: they take eight times as long
KILL_AT: Final = 0.5  # of the origin's reading
WAIT_S: Final = 900.0
# Of what a link carries, Ethernet, IP and TCP take their part of each packet of 1,514 bytes.
PAYLOAD: Final = 1448 / 1514
SHARDS: Final = 4
# How unevenly connections share a link: with these the simulator gave for nodes that did not even
# it out what hosts had given, 1.31 to 1.35 of size/link in the cold start.
UNEVEN: Final = 0.7
UNEVEN_NODES: Final = 0.5
SEEDS: Final = 7


@dataclass(frozen=True, slots=True)
class Fleet:
    """Agents that run, and an origin."""

    network: Network
    origin: Origin
    agents: list[Agent]
    size_bytes: int

    @property
    def ref(self) -> str:
        """The model."""
        return f"{self.origin.url}/model/"


@contextmanager
def fleet(
    folder: Path,
    count: int,
    size_bytes: int,
    *,
    together: bool = True,
    queue_s: float = QUEUE_S,
    congestion: str = CONGESTION,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Fleet]:
    """So many agents; not `together`: each with no peers."""
    root = folder / "origin"
    rmtree(root, ignore_errors=True)
    write_model(root / "model", size_bytes, shards=SHARDS)
    hosts = [f"node{number}" for number in range(count)]
    settings = f"[store]\nchunk_bytes = {chunk_bytes}"
    try:
        with (
            Network(
                ["origin", *hosts], mbit_s=MBIT_S, queue_s=queue_s, congestion=congestion
            ) as network,
            Origin(network, "origin", root) as origin,
            ExitStack() as stack,
        ):
            agents = [
                stack.enter_context(
                    Agent(network, host, hosts if together else [], settings=settings)
                )
                for host in hosts
            ]
            size = sum(path.stat().st_size for path in (root / "model").iterdir())
            yield Fleet(network, origin, agents, size)
    finally:
        rmtree(root, ignore_errors=True)


def measure_swarm(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """All cases, one after the other; empty where namespaces cannot be made."""
    if not can_make_namespaces():
        print("swarm: needs root, ip and tc")
        return []
    runs: list[dict[str, Any]] = []
    for number in range(rounds):
        for case in CASES:
            run = {"round": number, **case(folder)}
            print(run)
            runs.append(run)
    return [*runs, *_simulated()]


def _together(folder: Path) -> dict[str, Any]:
    with fleet(folder, NODES, SIZE_BYTES) as hosts:
        return _timed("cold start together", hosts, hosts.agents)


def _coarse(folder: Path) -> dict[str, Any]:
    """What has been read is passed on later, and what is read last comes to all others later."""
    with fleet(folder, NODES, SIZE_BYTES, chunk_bytes=COARSE_CHUNK_BYTES) as hosts:
        return _timed("cold start, chunks of 4 MiB", hosts, hosts.agents)


def _deep(folder: Path) -> dict[str, Any]:
    """Acknowledgements wait behind what a node sends: who sends a lot receives more slowly."""
    with fleet(folder, NODES, SIZE_BYTES, queue_s=DEEP_QUEUE_S) as hosts:
        return _timed("cold start, queues of 100 ms", hosts, hosts.agents)


def _bbr(folder: Path) -> dict[str, Any]:
    """It takes no notice of what short queues drop, so that links carry things twice."""
    with fleet(folder, NODES, SIZE_BYTES, congestion="bbr") as hosts:
        return _timed("cold start, BBR", hosts, hosts.agents)


def _alone(folder: Path) -> dict[str, Any]:
    with fleet(folder, NODES, SIZE_BYTES // ALONE_SHARE, together=False) as hosts:
        return _timed("without peers", hosts, hosts.agents)


def _scale_out_1(folder: Path) -> dict[str, Any]:
    return _scale_out(folder, 1)


def _scale_out_4(folder: Path) -> dict[str, Any]:
    return _scale_out(folder, 4)


def _scale_out(folder: Path, holders: int) -> dict[str, Any]:
    with fleet(folder, holders + 4, SIZE_BYTES) as hosts:
        _ready(_ask(hosts, hosts.agents[:holders]))
        case = f"{holders} holder{'s' if holders > 1 else ''}, 4 new"
        return _timed(case, hosts, hosts.agents[holders:])


def _killed(folder: Path) -> dict[str, Any]:
    with fleet(folder, NODES, SIZE_BYTES) as hosts:

        def kill() -> None:
            while hosts.origin.sent_bytes < KILL_AT * hosts.size_bytes:
                sleep(0.2)
            hosts.agents[-1].kill()

        return _timed("one killed half-way", hosts, hosts.agents, meanwhile=kill, lost=1)


def _timed(
    case: str,
    hosts: Fleet,
    agents: Sequence[Agent],
    *,
    meanwhile: Callable[[], None] | None = None,
    lost: int = 0,
) -> dict[str, Any]:
    """Have all of these fetch, the last `lost` of them in vain."""
    read = hosts.origin.sent_bytes
    sent = [hosts.network.sent_bytes(agent.host) for agent in hosts.agents]
    start_s = perf_counter()
    asked = _ask(hosts, agents)
    if meanwhile is not None:
        meanwhile()
    _ready(asked[: len(asked) - lost])
    wall_s = perf_counter() - start_s
    wait(asked)
    size = hosts.size_bytes
    most = max(
        hosts.network.sent_bytes(agent.host) - before
        for agent, before in zip(hosts.agents, sent, strict=True)
    )
    return {
        "case": case,
        "how": "hosts",
        "wall_s": wall_s,
        "bound_s": size * 8 / (MBIT_S * 1e6),
        "origin": (hosts.origin.sent_bytes - read) / size,
        "most_sent": most / size,
    }


def _ask(hosts: Fleet, agents: Sequence[Agent]) -> list[Future[WantedStatus]]:
    """Over each agent's API, and wait there: a command for each would share these processors."""
    ref = parse_ref(hosts.ref)

    def have(agent: Agent) -> WantedStatus:
        with AgentClient(str(agent.socket)) as client:
            client.want(ref)
            return client.wait(ref, WAIT_S)

    pool = ThreadPoolExecutor(len(agents))
    asked = [pool.submit(have, agent) for agent in agents]
    pool.shutdown(wait=False)
    return asked


def _ready(asked: Sequence[Future[WantedStatus]]) -> None:
    for each in asked:
        status = each.result()
        if status.phase is not ModelPhase.WARM:
            raise RuntimeError(f"a node did not get ready: {status}")


CASES: Final = (
    *(_together, _coarse, _deep, _bbr),
    *(_killed, _scale_out_1, _scale_out_4, _alone),
)


# The same, simulated


def _simulated() -> Iterator[dict[str, Any]]:
    """The same over links that are shared unevenly, as TCP does; see the constants."""
    rate = MBIT_S * 1e6 / 8 * PAYLOAD
    for case, nodes, holders, chunk_bytes in (
        ("cold start together", NODES, 0, CHUNK_BYTES),
        ("cold start, chunks of 4 MiB", NODES, 0, COARSE_CHUNK_BYTES),
        ("1 holder, 4 new", 5, 1, CHUNK_BYTES),
        ("4 holders, 4 new", 8, 4, CHUNK_BYTES),
    ):
        model = ModelShape(SHARDS, SIZE_BYTES // SHARDS, chunk_bytes)
        for seed in range(SEEDS):
            outcome = simulate(
                Scenario(
                    nodes=nodes,
                    seed=seed,
                    model=model,
                    origin=OriginShape(rate=rate, connection_rate=rate, first_byte_s=0.001),
                    node=NodeShape(up=rate, down=rate),
                    holders=holders,
                    uneven=UNEVEN,
                    uneven_nodes=UNEVEN_NODES,
                )
            )
            size = model.size_bytes
            yield {
                "round": seed,
                "case": case,
                "how": "simulated",
                "wall_s": outcome.last_s,
                "bound_s": size * 8 / (MBIT_S * 1e6),
                "origin": sum(node.from_origin for node in outcome.nodes) / size,
                "most_sent": max(node.sent for node in outcome.nodes) / size,
            }


# For RESULTS.md


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a case: medians over rounds, on hosts, and what the simulator says."""
    table = []
    for case in dict.fromkeys(run["case"] for run in runs):
        mine = [run for run in runs if run["case"] == case and run["how"] == "hosts"]
        if not mine:
            continue
        ratio = median(run["wall_s"] / run["bound_s"] for run in mine)
        simulated = [run for run in runs if run["case"] == case and run["how"] == "simulated"]
        said = median(run["wall_s"] / run["bound_s"] for run in simulated) if simulated else None
        table.append(
            [
                case,
                f"{median(run['wall_s'] for run in mine):.1f}",
                f"{ratio:.2f}",
                f"{said:.2f} ({said / ratio - 1:+.0%})" if said else "-",
                f"{median(run['origin'] for run in mine):.2f}",
                f"{median(run['most_sent'] for run in mine):.2f}",
            ]
        )
    return table


def targets(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """What eight nodes were to reach, and did."""
    found: list[tuple[str, str, str, bool]] = []
    for case, what, most, value in (
        ("cold start together", "8 nodes: last ready, of size/link", 1.25, _ratio),
        ("cold start together", "8 nodes: read from the origin, of size", 1.05, _origin),
        ("cold start together", "8 nodes: most sent by one, of size", 1.3, _sent),
        ("1 holder, 4 new", "1 holder, 4 new: last ready, of size/link", 1.3, _ratio),
        ("4 holders, 4 new", "4 holders, 4 new: last ready, of size/link", 1.3, _ratio),
        ("4 holders, 4 new", "4 holders, 4 new: read from the origin", 0.001, _origin),
    ):
        mine = [run for run in runs if run["case"] == case and run["how"] == "hosts"]
        if mine:
            reached = median(value(run) for run in mine)
            found.append((what, f"{most:g}", f"{reached:.2f}", reached <= most))
    return found


def _ratio(run: Mapping[str, Any]) -> float:
    return float(run["wall_s"] / run["bound_s"])


def _origin(run: Mapping[str, Any]) -> float:
    return float(run["origin"])


def _sent(run: Mapping[str, Any]) -> float:
    return float(run["most_sent"])
