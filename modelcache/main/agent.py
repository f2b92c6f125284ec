"""`agent`: the daemon of a node. Here is where logging is set up; nothing below it knows how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from modelcache.errors import UsageError
from modelcache.main.app import (
    Config,
    Json,
    LogFormat,
    LogLevel,
    Store,
    app,
    say,
    settings_for,
)

if TYPE_CHECKING:
    from modelcache.agent.events import Event
    from modelcache.config import Flags, Settings

_LEVELS: Final = {
    "progress": "debug",
    "retrying": "warning",
    "failed": "error",
    "store_trouble": "error",
    "peer_quarantined": "warning",
    "name_taken": "warning",
}


@app.command()
def agent(  # noqa: PLR0917 - one parameter for each option
    config: Config = None,
    store: Store = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="API and metrics over TCP; '' for none."
        ),
    ] = None,
    socket: Annotated[
        str | None, typer.Option("--socket", metavar="PATH", help="API over a Unix socket.")
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="This node's name.")
    ] = None,
    pulls: Annotated[
        int | None, typer.Option("--pulls", metavar="N", help="Most models fetched at once.")
    ] = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    *,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Print the settings, or what is wrong; and end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run this node's agent: it brings models that are wanted, and keeps them.

    It logs to standard error, and ends in order on SIGTERM; a second one ends it at once.
    """
    from modelcache.main.extras import needs_extra  # noqa: PLC0415 - see the package

    flags = {
        "--listen": ("agent.listen", listen),
        "--socket": ("agent.socket", socket),
        "--node": ("agent.node", node),
        "--pulls": ("agent.pulls_max", pulls),
        "--log-format": ("agent.log_format", log_format),
        "--log-level": ("agent.log_level", log_level),
    }
    with needs_extra():
        if check_config:
            _check(store, config, flags, as_json=as_json)
        else:
            _run(settings_for(store, config, flags))


def _run(settings: Settings) -> None:
    from modelcache.main.logs import logger_for  # noqa: PLC0415
    from modelcache.main.notify import Notifier  # noqa: PLC0415
    from modelcache.main.serving import serve  # noqa: PLC0415
    from modelcache.main.wiring import assembled  # noqa: PLC0415

    log = logger_for(settings.agent)
    with assembled(settings, log) as parts:
        parts.daemon.node.events.watch(lambda event: _log_event(log, event))
        serve(parts, log, Notifier.from_environment(os.environ))


def _check(store: Path | None, config: Path | None, flags: Flags, *, as_json: bool) -> None:
    from modelcache.errors import InvalidConfig  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.main import checking  # noqa: PLC0415

    settings = None
    wrong = []
    try:
        settings = settings_for(store, config, flags)
        settings.agent.node_id()
    except InvalidConfig as error:
        wrong = [error.message]
    wrong = list(dict.fromkeys([*checking.problems(config, flags, settings), *wrong]))
    if wrong or settings is None:
        for line in wrong[:-1]:
            say(f"modelcache: {line}")
        raise UsageError(wrong[-1])
    peers = bool(settings.peers.members or settings.peers.dns)
    where = checking.listening(settings, peers=peers)
    plain = checking.effective(settings)
    if as_json:
        present.print_json({"listens": where, "settings": plain})
        return
    for line in where:
        typer.echo(f"# listens on {line}")
    typer.echo(checking.as_toml(plain))


def _log_event(log: Any, event: Event) -> None:  # noqa: ANN401 - see `logs`
    fields = {key: value for key, value in event.data.items() if value is not None and value != ""}
    name = event.kind.value
    if event.model:
        fields["wanted"] = event.model
        name = f"model_{name}"
    getattr(log, _LEVELS.get(event.kind.value, "info"))(name, **fields)
