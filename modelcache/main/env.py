"""Environments in which other programs find the models of this node: `env hf`."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.main.app import Config, Json, Quiet, Store, app, complete_models, engine_for

env = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Print the environment in which another program finds models of this node.",
)
app.add_typer(env, name="env")


@env.command()
def hf(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Refs, model ids or their starts.",
            autocompletion=complete_models,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="ORG/NAME", help="The name to load it by."),
    ] = None,
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """For transformers, vLLM, huggingface_hub: they load ORG/NAME from here, without network.

    The models must be warm. Use it as: eval "$(modelcache env hf hf://org/name)".
    """
    del quiet  # there is nothing but the result
    import shlex  # noqa: PLC0415 - see the package

    from modelcache.agent.hub_view import hub_view  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    with engine_for(store, config) as engine:
        view = hub_view(engine.store, model, name)
    if as_json:
        models = [
            {
                "name": shown.name,
                "revision": shown.revision,
                "commit": shown.commit,
                "model_id": shown.model_id,
                "path": str(shown.path),
            }
            for shown in view.models
        ]
        present.print_json({"environment": view.variables(), "models": models})
        return
    for variable, value in view.variables().items():
        typer.echo(f"export {variable}={shlex.quote(value)}")
