"""Keeping models and removing them: `rm`, `gc`, `pin`, `unpin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.errors import UsageError
from modelcache.main.app import Config, Json, Quiet, Store, What, app, engine_for, say

if TYPE_CHECKING:
    from pathlib import Path


@app.command()
def rm(
    model: What,
    store: Store = None,
    config: Config = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Even if it is pinned or in use.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove a model, and the blobs that only it needs."""
    from modelcache.faces import present, units  # noqa: PLC0415

    with engine_for(store, config) as engine:
        freed = engine.remove(model, force=force)
    if as_json:
        present.print_json({"freed_bytes": freed})
    elif not quiet:
        say(f"freed {units.size(freed)}")


@app.command()
def gc(
    store: Store = None,
    config: Config = None,
    partial_older_than: Annotated[
        str,
        typer.Option("--partial-older-than", metavar="7d", help="Age of unfinished pulls to drop."),
    ] = "7d",
    need: Annotated[
        str | None,
        typer.Option("--need", metavar="140GB", help="With --dry-run: room for so much more."),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which models would be evicted.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove what nothing needs: orphaned blobs, stale partials; evict what exceeds the quota."""
    from modelcache.config import parse_duration  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    if need is not None and not dry_run:
        raise UsageError("--need belongs to --dry-run; a pull makes its own room")
    if dry_run:
        _would_evict(store, config, need or "0", as_json=as_json)
        return
    with engine_for(store, config) as engine:
        report = engine.collect_garbage(partial_older_than_s=parse_duration(partial_older_than))
    if as_json:
        present.print_json(present.garbage_json(report))
    elif not quiet:
        say(present.garbage_text(report))


def _would_evict(store: Path | None, config: Path | None, need: str, *, as_json: bool) -> None:
    from modelcache.config import parse_size  # noqa: PLC0415
    from modelcache.faces import present, units  # noqa: PLC0415

    with engine_for(store, config) as engine:
        models, freed, lacking = engine.would_evict(parse_size(need))
    if as_json:
        present.print_json(
            {
                "freed_bytes": freed,
                "lacking_bytes": lacking,
                "models": [{"model_id": each.model_id, "refs": each.refs} for each in models],
            }
        )
        return
    for each in models:
        typer.echo(
            f"{each.model_id[:12]}  {units.size(each.present_bytes)}  {', '.join(each.refs)}"
        )
    said = f"{units.count(len(models), 'model')} would be evicted, {units.size(freed)} freed"
    say(f"{said}; {units.size(lacking)} lack still" if lacking else said)


@app.command()
def pin(
    model: What,
    note: Annotated[str, typer.Option("--note", help="Why, for whoever asks later.")] = "",
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Protect a model from eviction and removal."""
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config) as engine:
        model_id = engine.pin(model, note)
    if as_json:
        present.print_json({"model_id": model_id, "pinned": True})
    elif not quiet:
        say(f"pinned {model_id[:12]}")


@app.command()
def unpin(
    model: What,
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take the protection away again."""
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config) as engine:
        was_pinned = engine.unpin(model)
    if as_json:
        present.print_json({"pinned": False, "was_pinned": was_pinned})
    elif not quiet:
        say("unpinned" if was_pinned else "was not pinned")
