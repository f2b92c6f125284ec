"""Who we tell servers we are."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def user_agent() -> str:
    """`modelcache/<version>`."""
    try:
        return f"modelcache/{metadata.version('modelcache')}"
    except metadata.PackageNotFoundError:
        return "modelcache"
