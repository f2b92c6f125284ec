"""The agent's side of the holder: giving it descriptors, and taking over what another agent had.

Without a holder everything works but for a restart: then mounts die with the agent, as they would
anyway. So nothing here raises for a holder that cannot be had; it is tried again at the next mount.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from modelcache.mounts import handing

ANSWER_S: Final = 5.0  # a holder has nothing else to do
START_S: Final = 10.0  # a Python process on a busy node
STEP_S: Final = 0.02


class Keeper:
    """See the module. Thread-safe."""

    def __init__(self, path: Path, owner: str, hold_s: float, *, start: bool = True) -> None:
        """path: where the holder listens. owner: tells apart agents that share one.

        hold_s: how long a mount waits for the next agent. start: begin one where there is none.
        """
        self._path = path
        self._owner = owner
        self._hold_s = hold_s
        self._start = start
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._held: dict[str, int] = {}

    def take(self) -> dict[str, int]:
        """Descriptors by name that an agent before this one gave away; they are ours to close.

        They go on being held.
        """
        with self._lock:
            line = self._connected(start=False)
            if line is None:
                return {}
            found: dict[str, int] = {}
            try:
                handing.send(line, {"do": "take", "owner": self._owner})
                while (heard := handing.receive(line)) is not None:
                    message, fd = heard
                    if "done" in message:
                        break
                    if fd is not None:
                        found[str(message["name"])] = fd
            except (OSError, ValueError, KeyError):
                self._disconnect()
            self._held.update(found)
            return found

    def hold(self, name: str, fd: int) -> bool:
        """Have a descriptor kept if this process dies; False where nobody does."""
        with self._lock:
            self._held[name] = fd
            for _ in range(2):  # a holder that has died meanwhile is replaced
                fresh = self._line is None
                line = self._connected(start=self._start)
                if line is None:
                    return False
                names = list(self._held) if fresh else [name]
                if all(self._say("hold", each, self._held[each]) for each in names):
                    return True
            return False

    def drop(self, name: str) -> None:
        """It need not be kept any more. Idempotent."""
        with self._lock:
            self._held.pop(name, None)
            if self._line is not None:
                self._say("drop", name, None)

    def close(self) -> None:
        """As if this process had died: what is held waits for the next agent. Idempotent."""
        with self._lock:
            self._disconnect()

    def _say(self, what: str, name: str, fd: int | None) -> bool:
        assert self._line is not None, "connected"  # noqa: S101
        message: dict[str, Any] = {"do": what, "owner": self._owner, "name": name}
        try:
            handing.send(self._line, {**message, "hold_s": self._hold_s}, fd)
            heard = handing.receive(self._line)
        except (OSError, ValueError):
            heard = None
        if heard is None:
            self._disconnect()
            return False
        return bool(heard[0].get("done"))

    def _connected(self, *, start: bool) -> socket.socket | None:
        if self._line is None:
            self._line = self._connect() or (self._begin() if start else None)
        return self._line

    def _connect(self) -> socket.socket | None:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.settimeout(ANSWER_S)
        try:
            line.connect(str(self._path))
        except OSError:
            line.close()
            return None
        return line

    def _begin(self) -> socket.socket | None:
        """Start a holder that outlives us, and connect to it."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        module = "modelcache.mounts.holder"
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603 - ourselves; it leaves its own child behind, and ends
                [sys.executable, "-m", module, str(self._path), "--detach"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                timeout=START_S,
                check=False,
            )
        until_s = monotonic() + START_S
        while monotonic() < until_s:
            line = self._connect()
            if line is not None:
                return line
            sleep(STEP_S)
        return None

    def _disconnect(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
