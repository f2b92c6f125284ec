"""The part of `make demo` with several nodes: three agents on loopback want a model at once.

The origin is counted by a proxy before it; where each node's bytes came from is what the nodes
themselves report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from modelcache.faces import units
from tests.servers.faults import FaultProxy
from tests.servers.process import ServerUnavailable, free_port

NODES: Final = ("node-1", "node-2", "node-3")
START_WAIT_S: Final = 30.0
STOP_WAIT_S: Final = 30.0
MODELCACHE: Final = Path(sys.executable).with_name("modelcache")


@dataclass(frozen=True, slots=True)
class DemoNode:
    """One agent that runs."""

    name: str
    folder: Path

    @property
    def socket(self) -> Path:
        """Where it is asked."""
        return self.folder / "agent.sock"


def demonstrate_cluster(
    url: str, environment: Mapping[str, str], ref: str, folder: Path, size_bytes: int
) -> None:
    """Three agents, one origin at `url`, and a table.

    environment: with credentials for the origin. Raises CalledProcessError, ServerUnavailable.
    """
    with FaultProxy(url) as proxy, ExitStack() as stack:
        environment = {**environment, "AWS_ENDPOINT_URL": proxy.url}
        ports = {name: free_port() for name in NODES}
        nodes = [
            stack.enter_context(_agent(name, folder / name, ports, environment)) for name in NODES
        ]
        for node in nodes:
            say(f"$ modelcache prefetch {ref} --wait --agent {node.socket.name}   # on {node.name}")
        before = proxy.body_bytes
        start_s = perf_counter()
        statuses = _prefetch_all(nodes, ref)
        seconds = perf_counter() - start_s
        read = proxy.body_bytes - before
        _table(nodes, statuses)
        say(
            f"   {len(nodes)} nodes had {units.size(size_bytes)} each after "
            f"{units.duration(seconds)}; the origin sent {units.size(read)}, "
            f"{read / size_bytes:.2f} of the model"
        )


@contextmanager
def _agent(
    name: str, folder: Path, ports: Mapping[str, int], environment: Mapping[str, str]
) -> Iterator[DemoNode]:
    folder.mkdir()
    members = ", ".join(f'"127.0.0.1:{port}"' for port in ports.values())
    (folder / "config.toml").write_text(
        f'[agent]\nnode = "{name}"\nsocket = "{folder / "agent.sock"}"\nlisten = ""\n'
        f'[peers]\nlisten = "127.0.0.1:{ports[name]}"\nmembers = [{members}]\n'
    )
    command = [str(MODELCACHE), "agent", "--config", str(folder / "config.toml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--store", str(folder / "store")],
            env=dict(environment),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    node = DemoNode(name, folder)
    try:
        deadline_s = monotonic() + START_WAIT_S
        while not node.socket.exists():
            if process.poll() is not None or monotonic() > deadline_s:
                raise ServerUnavailable(f"{name} did not start: {(folder / 'log').read_text()}")
            sleep(0.05)
        yield node
    finally:
        process.terminate()
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _prefetch_all(nodes: list[DemoNode], ref: str) -> list[dict[str, Any]]:
    """All at once; what each says in the end."""
    asked = []
    for node in nodes:
        command = [str(MODELCACHE), "prefetch", ref, "--wait", "--json", "--agent"]
        asked.append(
            subprocess.Popen([*command, str(node.socket)], stdout=subprocess.PIPE, text=True)
        )
    statuses = []
    for process in asked:
        out, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        statuses.append(json.loads(out))
    return statuses


def _table(nodes: list[DemoNode], statuses: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("   node")
    for column in ("origin", *NODES):
        table.add_column(f"from {column}", justify="right")
    for node, status in zip(nodes, statuses, strict=True):
        came = dict.fromkeys(("origin", *NODES), 0)
        for source, size in status["sources"].items():
            came[source.removeprefix("peer:") if source.startswith("peer:") else "origin"] += size
        cells = [units.size(size) if size else "-" for size in came.values()]
        table.add_row(f"   {node.name}", *cells)
    console = Console(width=100, color_system=None)
    with console.capture() as text:
        console.print(table)
    say(text.get().rstrip("\n"))


def say(text: str) -> None:
    """A line, now."""
    print(text, flush=True)
