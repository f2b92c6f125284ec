"""Telling systemd how the agent is: `sd_notify(3)` over `$NOTIFY_SOCKET`, in a few lines.

Without that variable nobody listens, and nothing is said.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


@dataclass(frozen=True, slots=True)
class Notifier:
    """address: of the socket; empty for nobody. watchdog_s: how soon silence counts as death."""

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """As systemd has set it for this process."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        within_us = environment.get("WATCHDOG_USEC", "")
        counts = for_us and within_us.isascii() and within_us.isdigit()
        return cls(address, int(within_us) / 1e6 if counts else 0.0)

    def tell(self, *words: str) -> None:
        """Say something, as lines like READY; that nobody hears it is no reason to fail."""
        if not self.address:
            return
        # `@` stands for the NUL that abstract names begin with.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto("\n".join(words).encode(), address)
