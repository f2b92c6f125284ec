"""What runs on the hosts of a network: an origin that counts, and agents."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.process import Server, find_program
from tests.swarm.network import Network

PORT = 8000
START_WAIT_S = 30.0
MODELCACHE = Path(sys.executable).with_name("modelcache")

_NGINX = """
daemon off;
worker_processes 1;
user root;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format bytes '$body_bytes_sent $status';
  access_log {folder}/access.log bytes;
  sendfile on;
  keepalive_requests 10000000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 0.0.0.0:{port}; root {root}; autoindex on; autoindex_format json; }}
}}
"""


class OnHost(Server):
    """A server on a host; its port is open there, and not here."""

    def __init__(self, network: Network, host: str) -> None:
        super().__init__()
        self.network = network
        self.host = host

    def command(self) -> Sequence[str]:
        return self.network.command(self.host, self.program())

    def program(self) -> Sequence[str]:
        """What is run on the host."""
        raise AssertionError("each has its own")

    def server_environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.folder)}

    def kill(self) -> None:
        """As a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Origin(OnHost):
    """nginx over a folder. What it has sent is counted by its own log."""

    def __init__(self, network: Network, host: str, root: Path) -> None:
        super().__init__(network, host)
        self._root = root

    @property
    def url(self) -> str:
        """As the other hosts see it."""
        return f"http://{self.network.address(self.host)}:{PORT}"

    def program(self) -> Sequence[str]:
        path = self.folder / "nginx.conf"
        path.write_text(_NGINX.format(folder=self.folder, port=PORT, root=self._root))
        program = find_program("nginx", "apt-get install nginx-light")
        return [program, "-p", str(self.folder), "-c", str(path)]

    def answers(self) -> bool:
        return (self.folder / "pid").exists()

    @property
    def sent_bytes(self) -> int:
        """Bodies of answers so far."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return sum(int(line.split()[0]) for line in lines)


class Agent(OnHost):
    """`modelcache agent` with a store of its own, in a cell of all the hosts named."""

    def __init__(
        self, network: Network, host: str, cell: Sequence[str], *, settings: str = ""
    ) -> None:
        """settings: more TOML."""
        super().__init__(network, host)
        self.store = self.folder / "store"
        self.socket = self.folder / "agent.sock"
        members = ", ".join(f'"{network.address(each)}:9871"' for each in cell)
        self._config = f"""
[agent]
node = "{host}"
socket = "{self.socket}"
listen = "127.0.0.1:9870"
[peers]
listen = "0.0.0.0:9871"
advertise = "{network.address(host)}:9871"
members = [{members}]
insecure = true
{settings}
"""

    def program(self) -> Sequence[str]:
        path = self.folder / "config.toml"
        path.write_text(self._config)
        return [str(MODELCACHE), "agent", "--config", str(path), "--store", str(self.store)]

    def answers(self) -> bool:
        return self.socket.exists()

    def prefetch(self, ref: str, *options: str) -> subprocess.Popen[str]:
        """Ask for a model and wait for it, beside the caller."""
        return subprocess.Popen(
            [
                str(MODELCACHE),
                "prefetch",
                ref,
                "--wait",
                "--json",
                "--agent",
                str(self.socket),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """Of the last pull of the only model."""
        (path,) = (self.store / "models").glob("*/report.json")
        report: dict[str, Any] = json.loads(path.read_bytes())
        return report

    def snapshot(self) -> Path:
        """Of the only model."""
        (path,) = (self.store / "snapshots").iterdir()
        return path
