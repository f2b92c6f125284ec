"""Running a command: arguments in, one line and an exit code out."""

from __future__ import annotations

import atexit
import errno
import gc as collector
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import typer
from typer.models import CommandInfo

from modelcache.errors import Cancelled, ModelcacheError, UsageError
from modelcache.main import (
    access,
    agent,
    controller,
    env,
    keeping,
    machine,
    memory,
    models,
    mounting,
    pulling,
    pushing,
    scaler,
    volumes,
    wanting,
    webhook,
)
from modelcache.main.app import app, say

# Imported, their commands are registered.
MODULES: Final = (
    pulling,
    pushing,
    models,
    env,
    memory,
    keeping,
    mounting,
    agent,
    wanting,
    volumes,
    webhook,
    controller,
    scaler,
    access,
    machine,
)
# As people meet them, for `--help`; a command that is not named here comes last.
ORDER: Final = [
    "pull",
    "push",
    "warm",
    "ls",
    "show",
    "path",
    "mount",
    "unmount",
    "env",
    "verify",
    "du",
    "rm",
    "gc",
    "pin",
    "unpin",
    "explain",
    "access",
    "agent",
    "prefetch",
    "status",
    "release",
    "events",
    "drain",
    "resume",
    "holder",
    "volumes",
    "csi",
    "webhook",
    "controller",
    "scaler",
    "doctor",
    "version",
]

_LISTS: Final = frozenset({"--include", "--exclude"})
# Failures of the store's disk are translated where they happen; these are of standard output.
_OUTPUT_LOST: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
TRACEBACK_VARIABLE: Final = "MODELCACHE_TRACEBACK"


def main() -> NoReturn:
    """Entry point: run a command, turn what it raises into one line and an exit code."""
    arguments = spread_lists(sys.argv[1:])
    # A manifest of 10,000 files makes many objects and no cycles: looking for some, now and then
    # and once more at the end, cost a tenth of such a pull.
    collector.set_threshold(100_000)
    atexit.register(collector.freeze)
    try:
        sys.exit(_run(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUTPUT_LOST:
            say(f"modelcache: cannot write the result: {error.strerror}")
            sys.exit(1)
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        text = f"this is a bug: {type(error).__name__}: {error}; {TRACEBACK_VARIABLE}=1 shows where"
        sys.exit(_report("bug", text, 1, arguments))


def _place(command: CommandInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return ORDER.index(name) if name in ORDER else len(ORDER)


app.registered_commands.sort(key=_place)


def _run(arguments: Sequence[str]) -> int:
    try:
        code: int | None = app(args=arguments, prog_name="modelcache", standalone_mode=False)
    except typer.TyperException as error:  # arguments that do not parse
        return _report(UsageError.code, _with_hint(error), error.exit_code, arguments)
    except ModelcacheError as error:
        return _report(error.code, error.message, error.exit_code, arguments)
    except KeyboardInterrupt:
        code = Cancelled.exit_code
    if code == Cancelled.exit_code:  # so does typer answer to a KeyboardInterrupt
        _report(Cancelled.code, "stopped", Cancelled.exit_code, arguments)
    return code or 0


def spread_lists(arguments: Sequence[str]) -> list[str]:
    """Let `--include A B C` mean `--include A --include B --include C`.

    A list ends at the next option and at anything that is a ref.
    """
    spread: list[str] = []
    current: str | None = None
    given = False
    for argument in arguments:
        if argument.startswith("-") or "://" in argument:
            current = argument if argument in _LISTS else None
            given = False
            spread.append(argument)
        elif current is not None and given:
            spread += [current, argument]
        else:
            given = True
            spread.append(argument)
    return spread


def _report(code: str, message: str, exit_code: int, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        from modelcache.faces import present  # noqa: PLC0415

        present.print_json({"error": {"code": code, "message": message}})
    else:
        say(f"modelcache: {message}")
    return exit_code


def _with_hint(error: typer.TyperException) -> str:
    """What does not parse, in one line, and where help is."""
    text = error.format_message().strip().removesuffix(".")
    context = getattr(error, "ctx", None)
    return f"{text}; `{context.command_path} -h` helps" if context else text
