"""A server process: a free port, a wait until it answers, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Self

START_WAIT_S = 30.0
STOP_WAIT_S = 10.0
TOOLS = Path(__file__).resolve().parents[2] / ".tools"


class ServerUnavailable(Exception):
    """The program is not installed, or did not start; the message says what to do."""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str, hint: str) -> str:
    """Path of a program: from .tools/bin, the virtual environment, then PATH."""
    here = Path(__file__).resolve().parents[2]
    for folder in (TOOLS / "bin", here / ".venv" / "bin", Path("/usr/sbin")):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise ServerUnavailable(f"{name} is not installed: {hint}")
    return found


class Server:
    """Start with `with`; `folder` is the server's own, removed with it."""

    scheme = "http"

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="modelcache-server-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL without a slash at the end."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def command(self) -> Sequence[str]:
        """The command line, without shell."""
        raise AssertionError("each server has its own")

    def environment(self) -> Mapping[str, str]:
        """Variables for its clients."""
        return {}

    def server_environment(self) -> Mapping[str, str]:
        """Variables for the server itself."""
        return {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until the port answers."""
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.server_environment()},
                start_new_session=True,
            )
        deadline_s = monotonic() + START_WAIT_S
        while not self.answers():
            if self._process.poll() is not None or monotonic() > deadline_s:
                raise ServerUnavailable(f"{self.command()[0]} did not start: {self.log[-2000:]}")
            sleep(0.02)

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the process group and remove the folder. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            self._end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(STOP_WAIT_S)
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait(STOP_WAIT_S)
