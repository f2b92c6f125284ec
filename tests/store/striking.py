"""Strike at a chosen system call: before the n-th that changes a disk, or in the middle of a write.

The calls are replaced where they enter the kernel, so that one which the store makes outside
`modelcache.store.files` is met as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from modelcache.store import files
from tests.store.processes import exit_code, fork

_WRITES: Final = ((os, "write"), (os, "pwrite"), (Path, "write_bytes"))
_FREEING: Final = ((os, "unlink"), (os, "rmdir"), (os, "ftruncate"))  # a full disk permits these
_CHANGES: Final = (
    *((os, name) for name in ("chmod", "fchmod", "fsync", "link", "mkdir", "rename", "setxattr")),
    *((os, name) for name in ("open", "symlink", "utime")),
    *((files, name) for name in ("clone", "preallocate", "sync_filesystem")),
)
_kill, _pid, _write = os.kill, os.getpid, os.write

Say = Callable[[str], None]


@contextmanager
def struck(
    step: int,
    strike: Callable[[], None],
    *,
    half: bool = False,
    ever_after: bool = False,
    freeing: bool = True,
) -> Iterator[list[str]]:
    """Call `strike` before the `step`-th change; yields the names of the calls it met.

    half: count writes only, and do half of that one first. ever_after: at every later change too.
    freeing: whether calls that only give back room are met.
    """
    met: list[str] = []
    left = step

    def replacement(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **named)
            left -= 1
            if left == 0 or (left < 0 and ever_after):
                met.append(name)
                if half and left == 0:
                    real(args[0], _half(args[1]), *args[2:])
                strike()
            return real(*args, **named)

        return call

    calls = _WRITES if half else (*_WRITES, *_CHANGES, *(_FREEING if freeing else ()))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in calls:
            patch.setattr(owner, name, replacement(name, getattr(owner, name)))
        yield met


def _half(data: bytes | memoryview) -> memoryview:
    """The first half; whole blocks of what is large, as a direct write that is cut short ends."""
    size = len(data) // 2
    return memoryview(data)[: size - size % 4096 or size]


def killed_at(step: int, work: Callable[[Say], object], *, half: bool) -> list[str] | None:
    """Run `work` in a child that is killed at a step.

    Returns what it said until then, or None if it came to its end before that step.
    """
    receiving, sending = os.pipe()

    def say(word: str) -> None:
        _write(sending, f"{word}\n".encode())  # survives the process: it is in the pipe

    def child() -> None:
        with struck(step, lambda: _kill(_pid(), signal.SIGKILL), half=half):
            work(say)

    pid = fork(child)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        said = pipe.read().split()
    code = exit_code(pid)
    assert code in {0, -signal.SIGKILL}, "the child failed; see its traceback"
    return said if code else None
