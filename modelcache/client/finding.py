"""Finding the agent that is meant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelcache.client.agent import AgentClient
from modelcache.domain.listening import default_socket
from modelcache.errors import AgentUnavailable, UsageError

AGENT_VARIABLE: Final = "MODELCACHE_AGENT"
TOKEN_VARIABLE: Final = "MODELCACHE_AGENT_TOKEN_FILE"  # noqa: S105 - where a token is, not one


def find_agent(
    explicit: str | None = None,
    *,
    socket: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> AgentClient:
    """The agent that is meant: what was given, `$MODELCACHE_AGENT`, or this node's socket.

    explicit: an address, as AgentClient takes it. socket: where this node's agent listens; default:
    the usual place. `$MODELCACHE_AGENT_TOKEN_FILE` names a file with the token for TCP. Raises
    AgentUnavailable when there is none, UsageError for an address or token file that is none.
    """
    environment = os.environ if environment is None else environment
    address = explicit or environment.get(AGENT_VARIABLE)
    if address:
        return AgentClient(address, token=_token(environment.get(TOKEN_VARIABLE)))
    usual = socket or Path(default_socket(os.geteuid(), environment.get("XDG_RUNTIME_DIR")))
    if not usual.exists():
        raise AgentUnavailable(
            f"no agent listens on {usual}; start one with `modelcache agent`, or name one with "
            f"--agent or {AGENT_VARIABLE}"
        )
    return AgentClient(str(usual))


def _token(file: str | None) -> str | None:
    if not file:
        return None
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{TOKEN_VARIABLE}: cannot read a token from {file}") from error
    if len(token.split()) != 1:
        raise UsageError(f"{TOKEN_VARIABLE}: {file} must hold one word")
    return token
