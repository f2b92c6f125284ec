"""Other processes: forked, so that what they run is written where it is read.

A forked child shares its parent's locks, which is why a test lets go of its own before it forks.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child; returns its process id. The child exits with 0, or 1 for an error."""
    pid = os.fork()
    if pid == 0:
        _run(work)
    return pid


def exit_code(pid: int) -> int:
    """Wait for a child; negative: the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@contextmanager
def holding(take: Callable[[], object]) -> Iterator[int]:
    """A child that holds what `take` returns until it is killed, at the latest at the end."""
    receiving, sending = os.pipe()

    def child() -> Never:
        kept = take()  # noqa: F841 - descriptors live as long as what holds them
        os.write(sending, b"ready")
        while True:
            signal.pause()

    pid = fork(child)
    os.close(sending)
    try:
        ready = os.read(receiving, 5)
        assert ready == b"ready", "the child failed; see its traceback"
        yield pid
    finally:
        os.close(receiving)
        kill(pid)


def kill(pid: int) -> None:
    """SIGKILL one child and wait until it is gone. Idempotent."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        return


def _run(work: Callable[[], object]) -> Never:
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
