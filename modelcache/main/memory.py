"""Models in memory: `warm`."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from modelcache.errors import Cancelled, NotInStore, UsageError
from modelcache.main.app import (
    Config,
    Json,
    Quiet,
    Store,
    What,
    app,
    cancellation,
    engine_for,
    say,
)
from modelcache.main.wanting import Agent, asking

if TYPE_CHECKING:
    from modelcache.client import AgentClient

STEP_S: Final = 0.3  # how often an agent is asked how far it is
SAY_S: Final = 1.0  # and how often that is told


@app.command()
def warm(
    model: What,
    store: Store = None,
    agent: Agent = None,
    config: Config = None,
    *,
    memory: Annotated[
        bool, typer.Option("--memory", help="Into the page cache, for every reader.")
    ] = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Into a copy on memory.folder, a tmpfs, to stay.")
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Out of memory again; the disk keeps it.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a model of the store into memory, so that the next start reads no disk."""
    if [memory, locked, drop].count(True) != 1:
        raise UsageError("say what to do: one of --memory, --locked and --drop")
    if agent is not None and store is not None:
        raise UsageError("an agent has its own store; give --agent or --store")
    if drop:
        _tell_freed(_dropped(model, store, agent, config), as_json=as_json, quiet=quiet)
        return
    meter = _Meter(quiet=quiet or as_json)
    if agent is not None:
        with asking(agent, config) as client:
            told = _by_agent(client, model, meter, locked=locked)
    else:
        told = _here(model, store, config, meter, locked=locked)
    _tell_use(told, as_json=as_json, quiet=quiet)


def _tell_use(told: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from modelcache.faces import present, units  # noqa: PLC0415

    if as_json:
        present.print_json(told)
    elif told["copy_path"]:
        typer.echo(told["copy_path"])
    elif not quiet:
        resident = told["resident_bytes"]
        say("in memory" if resident is None else f"{units.size(resident)} in memory")


def _tell_freed(freed: int, *, as_json: bool, quiet: bool) -> None:
    from modelcache.faces import present, units  # noqa: PLC0415

    if as_json:
        present.print_json({"freed_bytes": freed})
    elif not quiet:
        say(f"{units.size(freed)} of memory freed")


def _here(
    model: str, store: Path | None, config: Path | None, meter: _Meter, *, locked: bool
) -> dict[str, Any]:
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine, cancellation([]) as cancel:
        used = engine.warm_memory(model, locked=locked, told=meter, cancel=cancel)
        return present.memory_json(used)


def _dropped(model: str, store: Path | None, agent: str | None, config: Path | None) -> int:
    if agent is not None:
        with asking(agent, config) as client:
            return client.drop_memory(client.find_model(model))
    with engine_for(store, config, write=False) as engine:
        return engine.memory.drop(engine.store.find(model))


def _by_agent(client: AgentClient, model: str, meter: _Meter, *, locked: bool) -> dict[str, Any]:
    """Have it done, and wait. Raises what the agent's attempt has failed with."""
    from modelcache.client import error_of  # noqa: PLC0415 - see the package
    from modelcache.domain.wanted import Trouble  # noqa: PLC0415

    model_id = client.find_model(model)
    try:
        now = client.warm_memory(model_id, locked=locked)
        while now["phase"] == "warming":
            meter(now["done_bytes"], now["total_bytes"])
            sleep(STEP_S)
            now = client.memory(model_id)
    except KeyboardInterrupt as error:
        raise Cancelled("stopped waiting; the agent goes on") from error
    if now["phase"] == "failed":
        trouble = now["trouble"] or {}
        raise error_of(Trouble(str(trouble.get("code", "")), str(trouble.get("message", ""))))
    if now["phase"] != "done":
        raise NotInStore(f"the agent has forgotten what to do with {model}; was it restarted?")
    return {name: now[name] for name in ("resident_bytes", "copy_bytes", "copy_path")}


class _Meter:
    """How far it is, now and then, for people who watch."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet or not sys.stderr.isatty()
        self._said_s = monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Tell, if it is time to."""
        from modelcache.faces import units  # noqa: PLC0415

        if self._quiet or monotonic() - self._said_s < SAY_S:
            return
        self._said_s = monotonic()
        say(f"{units.size(done_bytes)} of {units.size(total_bytes)}")
