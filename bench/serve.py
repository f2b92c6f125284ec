"""What serving to peers costs the one that serves: CPU seconds for each GB, by server.

One file in the page cache, read in chunks over a few connections of loopback by a reader that
throws the bytes away. Servers take turns within each round; what counts is the CPU time of all
their processes. Without TLS the reader costs almost nothing, with TLS as much as the server.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure
from bench.servers import BLOB, BLOB_PATH, TOKEN
from tests.servers.certificates import Authority, Certificates
from tests.servers.nginx import Nginx
from tests.servers.process import Server

SIZE_BYTES = 4 << 30
CONNECTIONS = (1, 8)
BLOCK_BYTES = 64 << 20
READ_S = 300.0
GB = 1e9
PEERS, PEERS_TOKEN, PEERS_TLS = "peer plane", "peer plane, signed", "peer plane, TLS"
TARGET_CPU_S_PER_GB = 0.5


class Python(Server):
    """One of the servers in `bench.servers`."""

    def __init__(self, kind: str, file: Path, *more: str, token: Path | None = None) -> None:
        super().__init__()
        self._arguments = [kind, str(self.port), str(file), *more]
        self._token = token

    def command(self) -> Sequence[str]:
        """See `bench.servers`."""
        return [sys.executable, "-m", "bench.servers", *self._arguments]

    def server_environment(self) -> Mapping[str, str]:
        """With a token, the name of its file."""
        return {TOKEN: str(self._token)} if self._token else {}


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, and how it must be asked."""

    name: str
    server: Server
    path: str = BLOB_PATH
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def measure_servers(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Runs of all servers."""
    root = folder / "serve"
    root.mkdir(mode=0o755)
    file = root / BLOB
    write(file)
    token = folder / "token"
    token.write_text("a token that is long enough")
    certificates = Authority(folder / "authority").issue_peer("peer")
    runs: list[dict[str, Any]] = []
    for number in range(rounds):
        for contender in contenders(root, file, certificates, token):
            with contender.server:
                measure.warm(root)
                for connections in CONNECTIONS:
                    runs.append({"server": contender.name, "round": number})
                    runs[-1] |= run(contender, connections)
                    print(f"  {runs[-1]}", file=sys.stderr)
    return runs


def contenders(root: Path, file: Path, certificates: Certificates, token: Path) -> list[Contender]:
    """Made anew for each round: each has a port and a folder of its own."""
    files = tuple(map(str, (certificates.cert_file, certificates.key_file, certificates.ca_file)))
    environment = {TOKEN: str(token)}
    tls_nginx = Nginx(root, tls=certificates, extra="ssl_protocols TLSv1.3;")
    return [
        Contender(PEERS, Python("peers", file)),
        Contender(PEERS_TOKEN, Python("peers", file, token=token), environment=environment),
        Contender("nginx, sendfile", Nginx(root), f"/{BLOB}"),
        Contender("asyncio, loop.sendfile", Python("asyncio", file)),
        Contender("Starlette FileResponse, uvicorn", Python("starlette", file)),
        Contender(PEERS_TLS, Python("peers", file, *files), files=files),
        Contender("nginx, TLS", tls_nginx, f"/{BLOB}", files),
    ]


def run(contender: Contender, connections: int) -> dict[str, Any]:
    """Read the file once."""
    server = contender.server
    load = os.getloadavg()[0]  # what else went on: CPU seconds suffer less from it than GB/s
    before_s = cpu_s(server)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.servers", "read"),
            *(str(server.port), str(SIZE_BYTES), str(connections)),
            *(contender.path, *contender.files),
        ],
        env={**os.environ, **contender.environment},
        capture_output=True,
        text=True,
        timeout=READ_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{contender.name}: {done.stderr[-500:]}")
    return {
        "connections": connections,
        "load": load,
        "bytes": SIZE_BYTES,
        "seconds": json.loads(done.stdout)["seconds"],
        "cpu_s": cpu_s(server) - before_s,
        "peak_bytes": peak_bytes(server),
    }


def processes(server: Server) -> list[Path]:
    """All processes of a server: it has a session of its own."""
    process = server._process  # noqa: SLF001 - the bench reads what the operating system knows
    assert process is not None
    return [
        folder
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and fields_of(folder)[3:4] == [str(process.pid)]
    ]


def fields_of(folder: Path) -> list[str]:
    """Fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # has ended
        return []


def cpu_s(server: Server) -> float:
    """CPU seconds of all processes of a server so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(
        (int(fields[11]) + int(fields[12])) / ticks
        for fields in map(fields_of, processes(server))
        if fields
    )


def peak_bytes(server: Server) -> int:
    """The largest resident sets of all processes, added."""
    peak = 0
    for folder in processes(server):
        for line in (folder / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak += int(line.split()[1]) << 10
    return peak


def write(file: Path) -> None:
    """A file that does not compress, in the page cache."""
    block = random.Random(0).randbytes(BLOCK_BYTES)
    with file.open("wb") as out:
        for _ in range(SIZE_BYTES // len(block)):
            out.write(block)
    file.chmod(0o644)


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of the table in RESULTS.md: medians."""
    found = []
    for server, connections in dict.fromkeys((r["server"], r["connections"]) for r in runs):
        chosen = [r for r in runs if (r["server"], r["connections"]) == (server, connections)]
        gigabytes = chosen[0]["bytes"] / GB
        found.append(
            [
                f"**{server}**" if server.startswith(PEERS) else server,
                str(connections),
                f"{median(gigabytes / run['seconds'] for run in chosen):.2f}",
                f"{median(run['cpu_s'] / gigabytes for run in chosen):.2f}",
                f"{max(run['peak_bytes'] for run in chosen) / (1 << 20):.0f}",
            ]
        )
    return found


def target(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, bool]:
    """What we promised ourselves, and what came of it: of the worse number of connections."""
    cost = max(
        median(
            run["cpu_s"] / (run["bytes"] / GB)
            for run in runs
            if (run["server"], run["connections"]) == (PEERS, connections)
        )
        for connections in CONNECTIONS
    )
    met = cost <= TARGET_CPU_S_PER_GB
    return "serving to peers, cpu-s/GB", f"{TARGET_CPU_S_PER_GB}", f"{cost:.2f}", met
