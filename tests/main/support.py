"""The console script as a user runs it: a process of its own, with its own home and store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from unittest.mock import patch

from modelcache.main import main

PROGRAM = Path(sys.executable).with_name("modelcache")
WAIT_S = 30.0
JOURNAL_HEADER_BYTES = 80
JOURNAL_RECORD_BYTES = 40


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has one document and nothing else."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line that says what went wrong; progress lines before it do not count."""
        assert "Traceback" not in self.out + self.err
        assert "this is a bug" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("modelcache: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(f"{lines[0]}\n")
        return lines[0].removeprefix("modelcache: ")


class Shell:
    """Runs commands over one store. env: variables that every command gets."""

    def __init__(self, store: Path, **env: str) -> None:
        self.store = store
        self.env = env

    def environment(self, **env: str) -> dict[str, str]:
        """What a command sees; the test's own environment has no configuration in it."""
        return {**os.environ, "MODELCACHE_STORE": str(self.store), **self.env, **env}

    def run(self, *arguments: str | Path, **env: str) -> Done:
        """Run to the end."""
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            env=self.environment(**env),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def call(self, *arguments: str | Path, **env: str) -> Done:
        """`run` in this process, at a tenth of the time: for what a process of its own adds not."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self.environment(**env), clear=True),
            patch.object(sys, "argv", [str(PROGRAM), *map(str, arguments)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                return Done(int(end.code or 0), out.getvalue(), err.getvalue())

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Run beside the test."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for what `start` began."""
    out, err = process.communicate(timeout=WAIT_S)
    return Done(process.returncode, out, err)


def chunks_kept(store: Path) -> int:
    """How many chunks the journals of blobs under way vouch for."""
    sizes = (path.stat().st_size for path in store.glob("partial/*/journal"))
    return sum((size - JOURNAL_HEADER_BYTES) // JOURNAL_RECORD_BYTES for size in sizes)


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for another process; fail when it takes too long."""
    give_up_s = monotonic() + WAIT_S
    while not holds():
        assert monotonic() < give_up_s, "waited in vain"
        sleep(0.01)
