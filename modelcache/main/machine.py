"""The machine and the program: `doctor`, `version`."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.main.app import Config, Json, Quiet, Store, app, settings_for


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

    settings = settings_for(store, config, {})
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
