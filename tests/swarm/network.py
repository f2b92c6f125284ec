"""Hosts on one machine: network namespaces on a bridge of their own, every link shaped.

Each host has one link; both directions of it pass a token bucket of the same rate, so that a host
sends and receives no faster than a network card of that rate would. The bridge is in a namespace
too: nothing of this is seen outside, and all of it is gone when the last process is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

BURST_BYTES = 256 << 10  # four of the largest packets that the kernel hands over in one piece
QUEUE_S = 0.1  # of what a link carries, before packets are dropped


def can_make_namespaces() -> bool:
    """Whether this user may."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("tc") is not None


needs_namespaces = pytest.mark.skipif(
    not can_make_namespaces(),
    reason="needs root, and ip and tc (apt-get install iproute2), to make network namespaces",
)


class Network:
    """`with Network(["a", "b"], mbit_s=400) as network: network.run("a", [...])`."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        mbit_s: float,
        queue_s: float = QUEUE_S,
        congestion: str | None = None,
    ) -> None:
        """queue_s: what waits at each end of a link, of what it carries; more is dropped.

        congestion: how TCP finds its rate, "cubic" or "bbr"; None for this machine's default.
        """
        self.hosts = list(hosts)
        self.mbit_s = mbit_s
        self._queue_s = queue_s
        self._congestion = congestion
        self._prefix = f"mc{os.getpid()}"
        self._switch = f"{self._prefix}-switch"

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, host: str) -> str:
        """The name to give to `ip netns exec`."""
        return f"{self._prefix}-{host}"

    def address(self, host: str) -> str:
        """Where others reach a host."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """The command, run on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *command]

    def sent_bytes(self, host: str) -> int:
        """What has left a host by its link, headers of packets included."""
        return self._counter(host, "tx_bytes")

    def received_bytes(self, host: str) -> int:
        """What has come to a host by its link, headers of packets included."""
        return self._counter(host, "rx_bytes")

    def shape(self, host: str, mbit_s: float) -> None:
        """Give a host's link another rate, both ways."""
        self._shape(host, mbit_s, "change")

    def close(self) -> None:
        """Remove everything; processes that still run there keep only their namespace."""
        for host in self.hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self.namespace(host))
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self._switch)

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        self._in(self._switch, "ip", "link", "add", "br0", "type", "bridge")
        self._in(self._switch, "ip", "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts):
            space = self.namespace(host)
            _ip("netns", "add", space)
            self._in(space, "ip", "link", "set", "lo", "up")
            port = f"p{number}"
            pair = ("type", "veth", "peer", "name", port, "netns", self._switch)
            self._in(space, "ip", "link", "add", "eth0", *pair)
            self._in(self._switch, "ip", "link", "set", port, "master", "br0", "up")
            self._in(space, "ip", "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._in(space, "ip", "link", "set", "eth0", "up")
            if self._congestion is not None:
                self._control(host, self._congestion)
            self._shape(host, self.mbit_s, "add")

    def _control(self, host: str, congestion: str) -> None:
        """By the route: what a namespace may name as its default is the whole machine's to say."""
        source = ("proto", "kernel", "scope", "link", "src", self.address(host))
        route = ("10.77.0.0/24", "dev", "eth0", *source, "congctl", congestion)
        self._in(self.namespace(host), "ip", "route", "replace", *route)

    def _shape(self, host: str, mbit_s: float, verb: str) -> None:
        port = f"p{self.hosts.index(host)}"
        limit = int(self._queue_s * mbit_s * 1e6 / 8) + BURST_BYTES
        for space, device in ((self.namespace(host), "eth0"), (self._switch, port)):
            bucket = ("rate", f"{mbit_s}mbit", "burst", str(BURST_BYTES), "limit", str(limit))
            self._in(space, "tc", "qdisc", verb, "dev", device, "root", "tbf", *bucket)

    def _counter(self, host: str, name: str) -> int:
        path = Path("/sys/class/net/eth0/statistics") / name
        return int(self._in(self.namespace(host), "cat", str(path)))

    def _in(self, space: str, *command: str) -> str:
        # /sys shows the devices of the namespace only to who mounts it there; `ip netns exec` does.
        done = subprocess.run(
            ["ip", "netns", "exec", space, *command], check=True, capture_output=True, text=True
        )
        return done.stdout


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
