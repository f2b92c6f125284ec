"""What commands need that a small install lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelcache.errors import UsageError


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say what to install where the agent's libraries are missing. Raises UsageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "modelcache":
            raise
        raise UsageError(
            f"this needs {package}, which is not installed; install modelcache[agent]"
        ) from error
