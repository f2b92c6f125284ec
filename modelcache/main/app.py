"""What all commands share: the application, common options, the engine they work with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.errors import ModelcacheError, UsageError

if TYPE_CHECKING:
    from modelcache.agent import Engine
    from modelcache.config import Flags, Settings
    from modelcache.transfer.report import Progress

app = typer.Typer(
    name="modelcache",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_models(incomplete: str) -> Iterator[str]:
    """Refs and ids of the store's models, for the shell."""
    try:
        with engine_for(None, None, write=False) as engine:
            for model in engine.models():
                for name in (*model.refs, model.model_id[:12]):
                    if name.startswith(incomplete):
                        yield name
    except ModelcacheError:
        return  # a shell is no place for errors


def _print_version(value: bool) -> None:
    if value:
        import modelcache  # noqa: PLC0415

        typer.echo(modelcache.__version__)
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Make model weights appear on this node as fast as the hardware allows."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(UsageError.exit_code)


RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="s3://, gs://, oci://, hf://, https://, file://.")
]
Store = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Store to use.", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file.", show_default=False),
]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", metavar="json|console", help="How to log.")
]
LogLevel = Annotated[
    str | None,
    typer.Option("--log-level", metavar="debug|info|warning|error", help="What to log."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
What = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A ref, a model id or its start.", autocompletion=complete_models
    ),
]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB...", help="Only such files.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB...", help="Not such files.")
]


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    typer.echo(text, err=True)


def split_globs(globs: Sequence[str] | None) -> list[str]:
    """Globs of repeated options; each may be several, separated by commas."""
    return [glob for text in globs or () for glob in text.split(",") if glob]


def settings_for(store: Path | None, config: Path | None, flags: Flags) -> Settings:
    """Defaults, file, environment, flags: each overrides what is before it."""
    from modelcache.config import load_settings, override  # noqa: PLC0415

    settings = override(load_settings(config), flags)
    return settings.with_store(store.expanduser().absolute()) if store else settings


@contextmanager
def engine_for(
    store: Path | None,
    config: Path | None,
    *,
    write: bool = True,
    flags: Flags | None = None,
) -> Iterator[Engine]:
    """An engine over the store that these options name."""
    from modelcache.agent import Engine  # noqa: PLC0415

    with Engine(settings_for(store, config, flags or {}), write=write) as engine:
        yield engine


@contextmanager
def cancellation(last: Sequence[Progress]) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second signal kills at once.

    last: the latest progress. While the ref is being resolved there is nothing to keep, and an
    origin that does not answer is left at once.
    """
    cancel = threading.Event()

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        cancel.set()
        if last and not last[-1].files_total:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
