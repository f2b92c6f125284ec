"""`agent --check-config`: the effective settings, what would be listened on, all that is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from modelcache.config import Flags, Settings, find_problems
from modelcache.errors import ModelcacheError

HIDDEN: Final = "…"
_QUERY: Final = re.compile(r"(https?://[^\s?]*\?)\S+")


def effective(settings: Settings) -> dict[str, Any]:
    """All settings as plain values, by group; what may be a secret is left out of them."""
    plain: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if hasattr(value, "__dataclass_fields__"):
            value = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
        plain[item.name] = value
    plain["http"]["headers"] = [
        f"{header.partition(':')[0]}: {HIDDEN}" for header in plain["http"]["headers"]
    ]
    plain["mirrors"]["rewrite"] = [
        _QUERY.sub(rf"\1{HIDDEN}", line) for line in plain["mirrors"]["rewrite"]
    ]
    return plain


def as_toml(plain: dict[str, Any]) -> str:
    """The same as a configuration file has it."""
    alone = [f"{name} = {_value(v)}" for name, v in plain.items() if not isinstance(v, dict)]
    groups = [
        "\n".join([f"[{name}]", *(f"{key} = {_value(each)}" for key, each in group.items())])
        for name, group in plain.items()
        if isinstance(group, dict)
    ]
    return "\n\n".join(["\n".join(alone), *groups])


def listening(settings: Settings, *, peers: bool) -> list[str]:
    """Where the agent would be asked, in words."""
    agent = settings.agent
    changes = "changes with a token" if agent.tcp_token_file else "reading only"
    told = [f"unix:{agent.socket} (API, all of it)"]
    if agent.listen:
        told.append(f"tcp:{agent.listen} (API, {changes}; metrics, probes)")
    if peers:
        told.append(f"tcp:{settings.peers.listen} (peers)")
    return told


def problems(config: Path | None, flags: Flags, settings: Settings | None) -> list[str]:
    """All that is wrong, one line each. settings: where they could be read at all."""
    found = [error.message for error in find_problems(config, os.environ, flags)]
    if settings is not None:
        found += _opening(settings)
    return list(dict.fromkeys(found))


def _opening(settings: Settings) -> Iterator[str]:
    """What opening things shows; nothing is made or changed, and nothing listens."""
    from modelcache.agent import Engine  # noqa: PLC0415 - see the package
    from modelcache.faces.http.guard import token_file  # noqa: PLC0415
    from modelcache.main.wiring import neighbours_for  # noqa: PLC0415

    try:
        engine = Engine(settings, write=False)
    except ModelcacheError as error:
        yield error.message
    else:
        try:
            neighbours_for(settings, engine)
        except ModelcacheError as error:
            yield error.message
    if settings.agent.tcp_token_file:
        try:
            token_file(Path(settings.agent.tcp_token_file))
        except ModelcacheError as error:
            yield error.message


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
