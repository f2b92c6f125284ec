"""The command line and all wiring; takes no decisions.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 a
request that cannot be, 130 stopped by the user. Modules that only some commands need are imported
where they are used: `--help` and a warm `pull` must answer before anyone notices.
"""

from __future__ import annotations

import atexit
import errno
import gc as collector
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from modelcache.errors import Cancelled, ModelcacheError, UsageError

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

_LISTS: Final = frozenset({"--include", "--exclude"})
# Failures of the store's disk are translated where they happen; these are of standard output.
_OUTPUT_LOST: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})
TRACEBACK_VARIABLE: Final = "MODELCACHE_TRACEBACK"


def _complete_models(incomplete: str) -> Iterator[str]:
    """Refs and ids of the store's models, for the shell."""
    try:
        with _engine(None, None, write=False) as engine:
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
        _say(context.get_help())
        raise typer.Exit(UsageError.exit_code)


Store = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Store to use.", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
What = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A ref, a model id or its start.", autocompletion=_complete_models
    ),
]


@app.command()
def pull(  # noqa: PLR0917 - one parameter for each option
    ref: Annotated[str, typer.Argument(metavar="REF", help="s3://, http(s):// or file:// ref.")],
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB...", help="Only such files.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB...", help="Not such files.")
    ] = None,
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

    parsed = parse_ref(ref).filtered(_split(include), _split(exclude))
    flags = {
        "--io": ("transfer.io", io),
        "--limit-rate": ("transfer.bandwidth_limit_bytes_s", limit_rate),
        "--connections": ("transfer.connections_max", connections),
        "--retries": ("transfer.retries_max", retries),
        "--verify-md5": ("transfer.verify_md5", verify_md5 or None),
        "--link": ("file.link", link),
    }
    last: list[Progress] = []
    with _engine(store, config, flags=flags) as engine, _cancellation(last) as cancel:
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
        _say(present.snapshot_text(snapshot))
    if verbose and snapshot.report:
        for event in snapshot.report.events:
            _say(f"  {event}")
    typer.echo(snapshot.path)


@app.command()
def ls(
    store: Store = None, config: Config = None, *, as_json: Json = False, quiet: Quiet = False
) -> None:
    """List the models of this node."""
    from modelcache.agent.clock import wall_clock_s  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    with _engine(store, config, write=False) as engine:
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
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one model and its files."""
    from modelcache.faces import present  # noqa: PLC0415

    with _engine(store, config, write=False) as engine:
        described, files = engine.show(model)
    if as_json:
        present.print_json(present.show_json(described, files))
    elif quiet:
        for item in files:
            typer.echo(item.file.path)
    else:
        typer.echo(present.show_text(described, files))


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

    with _engine(store, config, write=False) as engine:
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

    with _engine(store, config, write=repair) as engine:
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

    with _engine(store, config, write=False) as engine:
        usage = engine.usage()
        names = {model.model_id: ", ".join(model.refs) for model in engine.models()}
    if as_json:
        present.print_json(present.usage_json(usage))
    elif quiet:
        typer.echo(usage.blobs_bytes + usage.partial_bytes)
    else:
        typer.echo(present.usage_text(usage, {str(key): name for key, name in names.items()}))


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

    with _engine(store, config) as engine:
        freed = engine.remove(model, force=force)
    if as_json:
        present.print_json({"freed_bytes": freed})
    elif not quiet:
        _say(f"freed {units.size(freed)}")


@app.command()
def gc(
    store: Store = None,
    config: Config = None,
    partial_older_than: Annotated[
        str,
        typer.Option("--partial-older-than", metavar="7d", help="Age of unfinished pulls to drop."),
    ] = "7d",
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove what nothing needs: orphaned blobs, stale partials; evict what exceeds the quota."""
    from modelcache.config import parse_duration  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    with _engine(store, config) as engine:
        report = engine.collect_garbage(partial_older_than_s=parse_duration(partial_older_than))
    if as_json:
        present.print_json(present.garbage_json(report))
    elif not quiet:
        _say(present.garbage_text(report))


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

    with _engine(store, config) as engine:
        model_id = engine.pin(model, note)
    if as_json:
        present.print_json({"model_id": model_id, "pinned": True})
    elif not quiet:
        _say(f"pinned {model_id[:12]}")


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

    with _engine(store, config) as engine:
        was_pinned = engine.unpin(model)
    if as_json:
        present.print_json({"pinned": False, "was_pinned": was_pinned})
    elif not quiet:
        _say("unpinned" if was_pinned else "was not pinned")


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

    with _engine(store, config, write=False) as engine:
        report = engine.explain(model)
    if as_json:
        present.print_json(report.to_json())
    else:
        typer.echo(present.bottleneck(report) if quiet else present.explain_text(report))


@app.command()
def doctor(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="Also ask this origin.")
    ] = None,
    store: Store = None,
    config: Config = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check this machine, measure its limits, and say what to change."""
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.faces.doctor import Verdict, examine, report_text  # noqa: PLC0415

    settings = _settings(store, config, {})
    findings = list(examine(settings, parse_ref(ref) if ref else None))
    if as_json:
        present.print_json([finding.to_json() for finding in findings])
    else:
        bad = [finding for finding in findings if finding.verdict is not Verdict.OK]
        wanted = bad if quiet else findings
        if wanted:
            typer.echo(report_text(wanted))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


@app.command()
def version(*, as_json: Json = False) -> None:
    """Print the version."""
    import modelcache  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415

    if as_json:
        present.print_json({"version": modelcache.__version__})
    else:
        typer.echo(modelcache.__version__)


def main() -> NoReturn:
    """Entry point: run a command, turn what it raises into one line and an exit code."""
    arguments = spread_lists(sys.argv[1:])
    # A manifest of 10,000 files makes many objects and no cycles: looking for some, now and then
    # and once more at the end, cost a tenth of such a pull.
    collector.set_threshold(100_000)
    atexit.register(collector.freeze)
    try:
        sys.exit(_run(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUTPUT_LOST:
            _say(f"modelcache: cannot write the result: {error.strerror}")
            sys.exit(1)
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        text = f"this is a bug: {type(error).__name__}: {error}; {TRACEBACK_VARIABLE}=1 shows where"
        sys.exit(_report("bug", text, 1, arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        code: int | None = app(args=arguments, prog_name="modelcache", standalone_mode=False)
    except typer.TyperException as error:  # arguments that do not parse
        return _report(UsageError.code, _with_hint(error), error.exit_code, arguments)
    except ModelcacheError as error:
        return _report(error.code, error.message, error.exit_code, arguments)
    except KeyboardInterrupt:
        code = Cancelled.exit_code
    if code == Cancelled.exit_code:  # so does typer answer to a KeyboardInterrupt
        _report(Cancelled.code, "stopped", Cancelled.exit_code, arguments)
    return code or 0


def spread_lists(arguments: Sequence[str]) -> list[str]:
    """Let `--include A B C` mean `--include A --include B --include C`.

    A list ends at the next option and at anything that is a ref.
    """
    spread: list[str] = []
    current: str | None = None
    given = False
    for argument in arguments:
        if argument.startswith("-") or "://" in argument:
            current = argument if argument in _LISTS else None
            given = False
            spread.append(argument)
        elif current is not None and given:
            spread += [current, argument]
        else:
            given = True
            spread.append(argument)
    return spread


def _report(code: str, message: str, exit_code: int, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        from modelcache.faces import present  # noqa: PLC0415

        present.print_json({"error": {"code": code, "message": message}})
    else:
        _say(f"modelcache: {message}")
    return exit_code


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _with_hint(error: typer.TyperException) -> str:
    """What does not parse, in one line, and where help is."""
    text = error.format_message().strip().removesuffix(".")
    context = getattr(error, "ctx", None)
    return f"{text}; `{context.command_path} -h` helps" if context else text


def _split(globs: Sequence[str] | None) -> list[str]:
    return [glob for text in globs or () for glob in text.split(",") if glob]


def _stopped(last: Sequence[Progress]) -> str:
    from modelcache.faces import units  # noqa: PLC0415

    kept = last[-1] if last else None
    if kept is None or not kept.total_bytes:
        return "stopped before anything was fetched"
    return (
        f"stopped; about {units.size(kept.done_bytes)} of {units.size(kept.total_bytes)} are kept, "
        "the same command goes on from there"
    )


def _settings(store: Path | None, config: Path | None, flags: Flags) -> Settings:
    """Defaults, file, environment, flags: each overrides what is before it."""
    from modelcache.config import load_settings, override  # noqa: PLC0415

    settings = override(load_settings(config), flags)
    return settings.with_store(store.expanduser().absolute()) if store else settings


@contextmanager
def _engine(
    store: Path | None,
    config: Path | None,
    *,
    write: bool = True,
    flags: Flags | None = None,
) -> Iterator[Engine]:
    from modelcache.agent import Engine  # noqa: PLC0415

    with Engine(_settings(store, config, flags or {}), write=write) as engine:
        yield engine


@contextmanager
def _cancellation(last: Sequence[Progress]) -> Iterator[threading.Event]:
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


if __name__ == "__main__":
    main()
