"""A small process that keeps streaming mounts alive while their agent is being restarted.

    python -m modelcache.mounts.holder SOCKET [--stay | --detach]

A FUSE mount lives as long as somebody has its descriptor. The agent gives each to this process,
over a connection that stays open. When the connection ends the agent is dead: readers wait, and the
next agent takes the descriptors over. If none does within the time that came with a descriptor, it
is closed, and who waits gets an error: nobody waits for ever.

With --stay it never ends by itself: for a supervisor, or a container beside the agent's. With
--detach it goes on in the background. It imports next to nothing and does nothing else, so that
there is nothing to restart it for.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from modelcache.mounts import handing

HELD_MAX: Final = 1024  # mounts of one node
LINES_MAX: Final = 16  # connections: one agent, and such as are about to end
IDLE_S: Final = 10.0  # with nothing to hold and nobody there, unless told to stay
TICK_S: Final = 0.5
_PEER: Final = struct.Struct("iII")  # pid, uid, gid


@dataclass(slots=True)
class Held:
    """One descriptor. owner: whose agent it is of. line: its connection; None when that is over.

    until_s: when it is given up, as time.monotonic counts.
    """

    fd: int
    owner: str
    hold_s: float
    line: socket.socket | None
    until_s: float = float("inf")


class Holder:
    """See the module."""

    def __init__(self, path: Path, *, stay: bool) -> None:
        """Listen at a path. Raises OSError when somebody else does, or where nobody can."""
        self._path = path
        self._stay = stay
        self._held: dict[tuple[str, str], Held] = {}
        self._lines: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._idle_s = monotonic()
        self._listener = _listen(path)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopped = False

    def stop(self) -> None:
        """Give everything up, at the next look."""
        self._stopped = True

    def run(self) -> None:
        """Until there is nothing to hold any more, or for good."""
        try:
            while not self._stopped and not self._over():
                for key, _ in self._selector.select(TICK_S):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - nothing else
                        self._hear(key.fileobj)
                self._give_up()
        finally:
            with suppress(OSError):
                self._path.unlink()

    def _over(self) -> bool:
        if self._stay or self._held or self._lines:
            self._idle_s = monotonic()
        return monotonic() - self._idle_s > IDLE_S

    def _accept(self) -> None:
        line, _ = self._listener.accept()
        peer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] != os.geteuid() or len(self._lines) >= LINES_MAX:
            line.close()
            return
        self._lines.append(line)
        self._selector.register(line, selectors.EVENT_READ)

    def _hear(self, line: socket.socket) -> None:
        try:
            heard = handing.receive(line)
        except (OSError, ValueError):
            heard = None
        if heard is None:
            self._end(line)
            return
        message, fd = heard
        try:
            self._do(line, message, fd)
        except (KeyError, TypeError, ValueError, OSError):
            self._end(line)

    def _do(self, line: socket.socket, message: dict[str, Any], fd: int | None) -> None:
        owner = str(message["owner"])
        match message["do"]:
            case "hold" if fd is not None and len(self._held) < HELD_MAX:
                self._let_go(owner, str(message["name"]))
                held = Held(fd, owner, float(message["hold_s"]), line)
                self._held[owner, str(message["name"])] = held
                handing.send(line, {"done": True})
            case "drop":
                self._let_go(owner, str(message["name"]))
                handing.send(line, {"done": True})
            case "take":
                for (whose, name), held in self._held.items():
                    if whose == owner:
                        held.line, held.until_s = line, float("inf")
                        handing.send(line, {"name": name}, held.fd)
                handing.send(line, {"done": True})
            case _:
                if fd is not None:
                    os.close(fd)
                handing.send(line, {"done": False})

    def _let_go(self, owner: str, name: str) -> None:
        held = self._held.pop((owner, name), None)
        if held is not None:
            os.close(held.fd)

    def _end(self, line: socket.socket) -> None:
        """An agent is dead, or has closed: the time of what it had begins to run."""
        self._selector.unregister(line)
        self._lines.remove(line)
        line.close()
        for held in self._held.values():
            if held.line is line:
                held.line, held.until_s = None, monotonic() + held.hold_s

    def _give_up(self) -> None:
        now_s = monotonic()
        for owner, name in [key for key, held in self._held.items() if held.until_s <= now_s]:
            self._let_go(owner, name)


def _listen(path: Path) -> socket.socket:
    """The listening socket; one that a dead holder left is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.connect(str(path))
        raise SystemExit(0)  # another was quicker, and serves as well
    with suppress(FileNotFoundError):
        path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(LINES_MAX)
    return listener


def main(arguments: list[str]) -> int:
    """Run. Exit codes: 0 nothing left to hold, 1 no socket, 2 wrong arguments."""
    places = [each for each in arguments if each not in {"--stay", "--detach"}]
    if len(places) != 1:
        sys.stderr.write("usage: python -m modelcache.mounts.holder SOCKET [--stay | --detach]\n")
        return 2
    try:
        holder = Holder(Path(places[0]), stay="--stay" in arguments)
    except OSError as error:
        sys.stderr.write(f"cannot listen on {places[0]}: {error.strerror}\n")
        return 1
    if "--detach" in arguments and os.fork():
        return 0  # who started us waits for this, and has nobody to look after
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: holder.stop())
    holder.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
