"""`push`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelcache.errors import Cancelled, UsageError
from modelcache.main.app import (
    Config,
    Exclude,
    Include,
    Json,
    Quiet,
    Store,
    app,
    cancellation,
    say,
    settings_for,
    split_globs,
)

if TYPE_CHECKING:
    from modelcache.agent.pushes import PushOptions
    from modelcache.transfer.report import Progress


@app.command()
def push(  # noqa: PLR0917 - one parameter for each option
    what: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A directory, a file, or a model."),
    ],
    ref: Annotated[str, typer.Argument(metavar="REF", help="oci://registry/repository:tag.")],
    include: Include = None,
    exclude: Exclude = None,
    packing: Annotated[
        str, typer.Option("--format", metavar="modelpack|oras", help="How it is described.")
    ] = "modelpack",
    layers: Annotated[
        str, typer.Option("--layers", metavar="raw|tar", help="Files as they are, or a tar each.")
    ] = "raw",
    annotation: Annotated[
        list[str] | None,
        typer.Option("--annotation", metavar="KEY=VALUE", help="Annotate the manifest."),
    ] = None,
    mount_from: Annotated[
        list[str] | None,
        typer.Option("--mount-from", metavar="REPO", help="Where its layers may be already."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Files sent side by side.")
    ] = None,
    chunk_size: Annotated[
        str, typer.Option("--chunk-size", metavar="64MiB", help="Send no more in one request.")
    ] = "0",
    store: Store = None,
    config: Config = None,
    *,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Take files whose names begin with a dot too.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of DIR.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Push a model to a registry; print the ref that names it for ever.

    What the registry has already is not sent. The tag changes last, and all at once.
    """
    from modelcache.agent.digests import Digests, default_folder  # noqa: PLC0415 - see the module
    from modelcache.agent.gathering import opened  # noqa: PLC0415
    from modelcache.agent.pushing import Push  # noqa: PLC0415
    from modelcache.domain.refs import FileFilter, parse_ref  # noqa: PLC0415
    from modelcache.faces import present  # noqa: PLC0415
    from modelcache.faces.progress import display  # noqa: PLC0415

    target = parse_ref(ref)
    options = _options(packing, layers, annotation, mount_from, jobs, chunk_size)
    settings = settings_for(store, config, {})
    accepted = FileFilter(tuple(split_globs(include)), tuple(split_globs(exclude)))
    last: list[Progress] = []
    with (
        opened(what, accepted, settings.store, hidden=hidden, follow=follow_links) as gathered,
        cancellation(last) as cancel,
    ):
        if gathered.note and not quiet:
            say(gathered.note)
        shown = display(quiet=quiet or as_json)

        def follow(progress: Progress) -> None:
            last[:] = [progress]
            shown(progress)

        digests = Digests(default_folder(os.environ))
        try:
            with shown:
                report = Push(
                    settings, target, options, digests, progress=follow, cancel=cancel
                ).run(gathered.files)
        except KeyboardInterrupt as error:
            raise Cancelled("stopped before anything was sent") from error
    if as_json:
        present.print_json(report.to_json())
        return
    if not quiet:
        say(present.push_text(report))
    typer.echo(report.reference)


def _options(  # noqa: PLR0917 - what was written, one by one
    packing: str,
    layers: str,
    annotation: Sequence[str] | None,
    mount_from: Sequence[str] | None,
    jobs: int | None,
    chunk_size: str,
) -> PushOptions:
    """Raises UsageError by the name of the option."""
    from modelcache.agent.pushes import JOBS_DEFAULT, JOBS_MAX, PushOptions  # noqa: PLC0415
    from modelcache.config import parse_size  # noqa: PLC0415
    from modelcache.domain.places import oci_name  # noqa: PLC0415
    from modelcache.sources.oci.packing import LayerForm, PushFormat  # noqa: PLC0415

    if packing not in set(PushFormat):
        raise UsageError(f"--format {packing!r} is not known; write modelpack or oras")
    if layers not in set(LayerForm):
        raise UsageError(f"--layers {layers!r} is not known; write raw or tar")
    if packing == PushFormat.ORAS and layers == LayerForm.TAR:
        raise UsageError("--layers tar is for --format modelpack; oras names files, not tars")
    jobs = JOBS_DEFAULT if jobs is None else jobs
    if not 1 <= jobs <= JOBS_MAX:
        raise UsageError(f"--jobs must be 1 to {JOBS_MAX}")
    for name in mount_from or ():
        parsed = oci_name(name)
        if parsed.tag or parsed.digest:
            raise UsageError(f"--mount-from {name!r} names a tag; write the repository alone")
    return PushOptions(
        PushFormat(packing),
        LayerForm(layers),
        dict(_pair(text) for text in annotation or ()),
        jobs,
        parse_size(chunk_size),
        tuple(mount_from or ()),
    )


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[!-<>-~]+", key):
        raise UsageError(f"--annotation {text[:80]!r} is not KEY=VALUE")
    return key, value
