"""What commands need that a small install lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from modelcache.errors import UsageError

_EXTRAS: Final = {
    "cryptography": "kubernetes",
    "google": "csi",
    "grpc": "csi",
    "lightkube": "kubernetes",
    "msgspec": "kubernetes",
}


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say what to install where a library is missing. Raises UsageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "modelcache":
            raise
        extra = _EXTRAS.get(package, "agent")
        raise UsageError(
            f"this needs {package}, which is not installed; install modelcache[{extra}]"
        ) from error
