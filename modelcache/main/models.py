"""Looking at the models of a node: `ls`, `show`, `path`, `verify`, `du`, `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelcache.errors import UsageError
from modelcache.main.app import Config, Json, Quiet, Store, What, app, engine_for


@app.command()
def ls(
    store: Store = None, config: Config = None, *, as_json: Json = False, quiet: Quiet = False
) -> None:
    """List the models of this node."""
    from modelcache.agent.clock import wall_clock_s  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine:
        models = engine.models()
    if as_json:
        present.print_json([present.model_json(model) for model in models])
    elif quiet:
        for model in models:
            typer.echo(model.model_id)
    else:
        typer.echo(present.models_text(models, wall_clock_s()))


@app.command()
def show(
    model: What,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="With --diff: what to compare with.")
    ] = None,
    store: Store = None,
    config: Config = None,
    *,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what changes from MODEL to OTHER.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one model and its files, or what changes from one model to another."""
    from modelcache.faces import present  # noqa: PLC0415

    if diff != (other is not None):
        raise UsageError("--diff compares two models; write show --diff MODEL OTHER")
    if other is not None:
        _show_difference(model, other, store, config, as_json=as_json, quiet=quiet)
        return
    with engine_for(store, config, write=False) as engine:
        described, files = engine.show(model)
    if as_json:
        present.print_json(present.show_json(described, files))
    elif quiet:
        for item in files:
            typer.echo(item.file.path)
    else:
        typer.echo(present.show_text(described, files))


def _show_difference(
    first: str,
    second: str,
    store: Path | None,
    config: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine:
        difference = engine.compare(first, second)
    if as_json:
        present.print_json(present.difference_json(difference))
    elif quiet:
        typer.echo(difference.fetch_bytes)
    else:
        typer.echo(present.difference_text(difference))


@app.command()
def path(
    model: What,
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the directory of a warm model."""
    del quiet  # there is nothing but the result
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine:
        found = engine.path(model)
    if as_json:
        present.print_json({"path": str(found)})
    else:
        typer.echo(found)


@app.command()
def verify(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A ref or model id; all without."),
    ] = None,
    store: Store = None,
    config: Config = None,
    *,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Fetch bad chunks again.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hash every file again, and fetch again what is damaged."""
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.faces.progress import display  # noqa: PLC0415

    with engine_for(store, config, write=repair) as engine:
        shown = display(quiet=quiet or as_json)
        with shown:
            results = engine.verify(model, repair=repair, progress=shown)
    if as_json:
        present.print_json(present.verify_json(results))
    elif not quiet:
        typer.echo(present.verify_text(results))
    if any(result.bad and not result.repaired for result in results):
        raise typer.Exit(1)


@app.command()
def du(
    store: Store = None, config: Config = None, *, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Show what the store takes, and what removing each model would free."""
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine:
        usage = engine.usage()
        names = {model.model_id: ", ".join(model.refs) for model in engine.models()}
    if as_json:
        present.print_json(present.usage_json(usage))
    elif quiet:
        typer.echo(usage.blobs_bytes + usage.partial_bytes)
    else:
        typer.echo(present.usage_text(usage, {str(key): name for key, name in names.items()}))


@app.command()
def explain(
    model: What,
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell where the time of the model's last pull went."""
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config, write=False) as engine:
        report = engine.explain(model)
    if as_json:
        present.print_json(report.to_json())
    else:
        typer.echo(present.bottleneck(report) if quiet else present.explain_text(report))
