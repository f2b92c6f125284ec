"""Asking an agent: `prefetch`, `release`, `status`, `events`, `drain`, `resume`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Final

import typer

from modelcache.errors import (
    AgentUnavailable,
    Cancelled,
    SourceUnavailable,
    UsageError,
)
from modelcache.main.app import (
    Config,
    Exclude,
    Include,
    Json,
    Quiet,
    RefArgument,
    app,
    say,
    split_globs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from modelcache.client import AgentClient
    from modelcache.domain.refs import Ref
    from modelcache.domain.wanted import WantedStatus

STEP_S: Final = 0.25  # how often the bar moves
WATCH_S: Final = 1.0
CLEAR: Final = "\x1b[2J\x1b[H"  # the screen, and back to its corner
AGENT_RETURN_S: Final = 60.0  # an agent that is restarted is back by then

Agent = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="SOCKET|URL",
        help="Agent to ask; default: this node's.",
        show_default=False,
    ),
]
LEASE: Final = "user"  # `wanted.LEASE_DEFAULT`, which is not worth its import to every command
Lease = Annotated[str, typer.Option("--lease", metavar="NAME", help="For whom it is wanted.")]


@app.command()
def prefetch(  # noqa: PLR0917 - one parameter for each option
    ref: RefArgument,
    include: Include = None,
    exclude: Exclude = None,
    priority: Annotated[
        str | None,
        typer.Option(
            "--priority",
            metavar="0-100|NAME",
            help="speculative 10, prewarm 30 (default), scheduled 60, mounted 90.",
        ),
    ] = None,
    lease: Lease = LEASE,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="2h", help="Until when it is wanted; for good.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Why, for whoever asks later.")] = "",
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="10m", help="With --wait: how long.")
    ] = None,
    agent: Agent = None,
    config: Config = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is warm; print where.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the origin again.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have the agent make a model warm, and keep it while it is wanted.

    The agent goes on whatever becomes of this command. `release` ends it.
    """
    from modelcache.config import parse_duration  # noqa: PLC0415 - see the package
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415

    if timeout and not wait:
        raise UsageError("--timeout says how long to wait; give --wait too")
    parsed = parse_ref(ref).filtered(split_globs(include), split_globs(exclude))
    within_s = parse_duration(timeout) if timeout else None
    with asking(agent, config) as client:
        status = client.want(
            parsed,
            priority=_priority(priority),
            lease=lease,
            ttl_s=parse_duration(ttl) if ttl else None,
            note=note,
            refresh=refresh,
        )
        if wait:
            status = _wait(client, parsed, status, within_s, quiet=quiet or as_json)
    _tell(status, as_json=as_json, quiet=quiet)


@app.command()
def release(  # noqa: PLR0917 - one parameter for each option
    ref: RefArgument,
    include: Include = None,
    exclude: Exclude = None,
    lease: Lease = LEASE,
    agent: Agent = None,
    config: Config = None,
    *,
    everybody: Annotated[bool, typer.Option("--all", help="Whoever wants it.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """End a want. The model stays in the store until its room is needed."""
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415 - see the package
    from modelcache.faces import present  # noqa: PLC0415

    parsed = parse_ref(ref).filtered(split_globs(include), split_globs(exclude))
    with asking(agent, config) as client:
        released = client.release(parsed, None if everybody else lease)
    if as_json:
        present.print_json({"released": released})
    elif not quiet:
        say("released" if released else "was not wanted")


@app.command()
def estimate(  # noqa: PLR0917 - one parameter for each option
    ref: RefArgument,
    include: Include = None,
    exclude: Exclude = None,
    node: Annotated[
        str | None,
        typer.Option(
            "--node", metavar="this|best|new|NAME", help="Only there; default: all three."
        ),
    ] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", metavar="0-100|NAME", help="Default: mounted 90.")
    ] = None,
    agent: Agent = None,
    config: Config = None,
    *,
    stream: Annotated[bool, typer.Option("--stream", help="Mounted before all is here.")] = False,
    as_json: Json = False,
) -> None:
    """When a model would be ready if a replica of it started now: here, elsewhere, on a new node.

    Nothing is fetched for it.
    """
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415 - see the package
    from modelcache.domain.volumes import MountMode  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.faces.estimates import estimates_text  # noqa: PLC0415

    parsed = parse_ref(ref).filtered(split_globs(include), split_globs(exclude))
    with asking(agent, config) as client:
        told = client.estimate(
            parsed,
            node=node,
            priority=_priority(priority),
            mode=MountMode.STREAM if stream else MountMode.FULL,
        )
    if as_json:
        present.print_json(told)
    else:
        say(estimates_text(told))


@app.command()
def status(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="Only this model.", show_default=False)
    ] = None,
    agent: Agent = None,
    config: Config = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what the agent is to have, and how far it is."""
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415 - see the package

    parsed = parse_ref(ref) if ref else None
    with asking(agent, config) as client:
        while True:
            text = _status_text(client, parsed, as_json=as_json, quiet=quiet, lines=watch)
            if watch and not as_json and sys.stdout.isatty():
                typer.echo(CLEAR, nl=False)
            typer.echo(text)
            if not watch:
                return
            sleep(WATCH_S)


@app.command()
def events(
    agent: Agent = None,
    config: Config = None,
    *,
    history: Annotated[
        bool, typer.Option("--history", help="Begin with what the agent remembers.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print what happens on the node, as it happens; one line each."""
    from modelcache.faces.wanted import event_text  # noqa: PLC0415 - see the package

    with asking(agent, config) as client:
        for event in client.events(history=history):
            if quiet and event.kind == "progress":
                continue
            line = json.dumps(event.data, ensure_ascii=False) if as_json else event_text(event)
            typer.echo(line)


@app.command()
def drain(
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="30s", help="How long it may take.")
    ] = None,
    agent: Agent = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have the agent take nothing new, stop pulls, and finish what it sends to others.

    For a node that is about to go. `modelcache resume` or a restart of the agent ends it; nothing
    wanted is forgotten.
    """
    from modelcache.config import parse_duration  # noqa: PLC0415 - see the package
    from modelcache.faces import present  # noqa: PLC0415

    with asking(agent, config) as client:
        complete = client.drain(parse_duration(timeout) if timeout else None)
    if as_json:
        present.print_json({"draining": True, "complete": complete})
    elif not quiet:
        say("drained" if complete else "draining; not all was over in time")
    if not complete:
        raise typer.Exit(1)


@app.command()
def resume(
    agent: Agent = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take back a drain: the node stays, and goes on with what is wanted.

    A drain that is still under way is given up.
    """
    from modelcache.faces import present  # noqa: PLC0415 - see the package

    with asking(agent, config) as client:
        resumed = client.resume()
    if as_json:
        present.print_json({"draining": False, "resumed": resumed})
    elif not quiet:
        say("resumed" if resumed else "it was not draining")


@contextmanager
def asking(address: str | None, config: Path | None) -> Iterator[AgentClient]:
    """The agent that the options name, or this node's as it is configured."""
    from modelcache.config import load_settings  # noqa: PLC0415 - see the package
    from modelcache.main.extras import needs_extra  # noqa: PLC0415

    with needs_extra():
        from modelcache.client import find_agent  # noqa: PLC0415

        with find_agent(address, socket=load_settings(config).agent.socket.expanduser()) as client:
            yield client


def _priority(text: str | None) -> int | None:
    from modelcache.domain.members import Priority  # noqa: PLC0415 - see the package

    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return int(Priority[text.upper()])
    except KeyError:
        known = ", ".join(priority.name.lower() for priority in Priority)
        raise UsageError(
            f"priority {text!r} is no number from 0 to 100 and none of {known}"
        ) from None


def _wait(
    client: AgentClient, ref: Ref, now: WantedStatus, within_s: float | None, *, quiet: bool
) -> WantedStatus:
    """Until the model is warm. Raises what the agent's attempt has failed with."""
    from modelcache.client import error_of  # noqa: PLC0415 - see the package
    from modelcache.domain.wanted import ModelPhase  # noqa: PLC0415
    from modelcache.faces.wanted import describe, waiting  # noqa: PLC0415

    until_s = None if within_s is None else monotonic() + within_s
    try:
        with waiting(quiet=quiet) as show:
            while not now.phase.settled:
                show(now)
                if until_s is not None and monotonic() >= until_s:
                    raise SourceUnavailable(
                        f"not warm in time, and the agent goes on: {describe(now)}"
                    )
                now = _next(client, ref)
    except KeyboardInterrupt as error:
        raise Cancelled(f"stopped waiting; the agent goes on with {ref.redacted()}") from error
    if now.phase is ModelPhase.FAILED and now.trouble is not None:
        raise error_of(now.trouble)
    return now


def _next(client: AgentClient, ref: Ref) -> WantedStatus:
    """The next moment; an agent that is being restarted is waited for."""
    give_up_s = monotonic() + AGENT_RETURN_S
    while True:
        try:
            return client.status(ref, wait_s=STEP_S)
        except AgentUnavailable:
            if monotonic() >= give_up_s:
                raise
            sleep(STEP_S)


def _tell(status: WantedStatus, *, as_json: bool, quiet: bool) -> None:
    from modelcache.faces import present  # noqa: PLC0415 - see the package
    from modelcache.faces.wanted import describe  # noqa: PLC0415

    if as_json:
        present.print_json(status.to_json())
        return
    if not quiet:
        say(describe(status))
    if status.path:
        typer.echo(status.path)


def _status_text(
    client: AgentClient, ref: Ref | None, *, as_json: bool, quiet: bool, lines: bool
) -> str:
    """What `status` prints. lines: JSON on one line, for there will be more."""
    from modelcache.faces.wanted import agent_text, describe  # noqa: PLC0415 - see the package

    indent = None if lines else 2
    if ref is not None:
        one = client.status(ref)
        if as_json:
            return json.dumps(one.to_json(), indent=indent, ensure_ascii=False)
        return one.phase.value if quiet else describe(one)
    whole = client.node()
    if as_json:
        return json.dumps(whole.plain, indent=indent, ensure_ascii=False)
    if quiet:
        return "\n".join(f"{each.phase} {each.ref}" for each in whole.wanted)
    return agent_text(whole)
