"""`pull`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.errors import Cancelled
from modelcache.main.app import (
    Config,
    Exclude,
    Include,
    Json,
    Quiet,
    RefArgument,
    Store,
    app,
    cancellation,
    engine_for,
    say,
    split_globs,
)

if TYPE_CHECKING:
    from modelcache.transfer.report import Progress


@app.command()
def pull(  # noqa: PLR0917 - one parameter for each option
    ref: RefArgument,
    include: Include = None,
    exclude: Exclude = None,
    store: Store = None,
    config: Config = None,
    io: Annotated[
        str | None, typer.Option("--io", metavar="direct|buffered|auto", help="How to write.")
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="5m", help="Believe a ref resolved this recently."),
    ] = None,
    limit_rate: Annotated[
        str | None, typer.Option("--limit-rate", metavar="100MB", help="Most bytes a second.")
    ] = None,
    connections: Annotated[
        int | None, typer.Option("--connections", metavar="N", help="Most connections.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", metavar="N", help="Failures in a row of a chunk.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="reflink|hardlink|copy", help="How to take file:// models."),
    ] = None,
    *,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the origin again.")] = False,
    verify_md5: Annotated[
        bool, typer.Option("--verify-md5", help="Check MD5 ETags of large files too.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell retries and hedges at the end.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model warm; print the directory it is in.

    Interrupted pulls go on where they stopped. Files that are here already, for whatever model,
    are not fetched again.
    """
    from modelcache.config import parse_duration  # noqa: PLC0415 - see the module
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.faces.progress import display  # noqa: PLC0415

    parsed = parse_ref(ref).filtered(split_globs(include), split_globs(exclude))
    flags = {
        "--io": ("transfer.io", io),
        "--limit-rate": ("transfer.bandwidth_limit_bytes_s", limit_rate),
        "--connections": ("transfer.connections_max", connections),
        "--retries": ("transfer.retries_max", retries),
        "--verify-md5": ("transfer.verify_md5", verify_md5 or None),
        "--link": ("file.link", link),
    }
    last: list[Progress] = []
    with engine_for(store, config, flags=flags) as engine, cancellation(last) as cancel:
        shown = display(quiet=quiet or as_json)

        def follow(progress: Progress) -> None:
            last[:] = [progress]
            shown(progress)

        try:
            with shown:
                snapshot = engine.pull(
                    parsed,
                    max_age_s=parse_duration(max_age) if max_age else None,
                    refresh=refresh,
                    progress=follow,
                    cancel=cancel,
                )
        except (Cancelled, KeyboardInterrupt) as error:
            raise Cancelled(_stopped(last)) from error
    if as_json:
        present.print_json(present.snapshot_json(snapshot))
        return
    if not quiet:
        say(present.snapshot_text(snapshot))
    if verbose and snapshot.report:
        for event in snapshot.report.events:
            say(f"  {event}")
    typer.echo(snapshot.path)


def _stopped(last: Sequence[Progress]) -> str:
    from modelcache.faces import units  # noqa: PLC0415

    kept = last[-1] if last else None
    if kept is None or not kept.total_bytes:
        return "stopped before anything was fetched"
    return (
        f"stopped; about {units.size(kept.done_bytes)} of {units.size(kept.total_bytes)} are kept, "
        "the same command goes on from there"
    )
