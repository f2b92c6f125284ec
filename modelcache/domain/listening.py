"""Where an agent listens: its addresses as text, and its socket unless somebody says."""

from __future__ import annotations

from typing import Final

from modelcache.domain.addresses import parse_address
from modelcache.errors import InvalidConfig

SOCKET_NAME: Final = "modelcache/agent.sock"
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of unix(7) holds 108, one of them for the NUL


def default_socket(user: int, runtime_folder: str | None) -> str:
    """`/run/modelcache/agent.sock` for root, else in the user's runtime folder.

    runtime_folder: `$XDG_RUNTIME_DIR`; without one, `/run/user/<user>`, where systemd puts it.
    """
    if user == 0:
        return f"/run/{SOCKET_NAME}"
    return f"{runtime_folder or f'/run/user/{user}'}/{SOCKET_NAME}"


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; port 0 means any. Raises InvalidConfig."""
    host, port = parse_address(text)
    if port is None:
        raise InvalidConfig(f"{text!r} has no port; write for example 127.0.0.1:9870")
    return host, port
