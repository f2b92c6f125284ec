"""`mount` and `unmount`: a model at a path, at once or when all of it is here."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from modelcache.errors import ModelcacheError, MountFailed, StoreError, UsageError, error_named
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
from modelcache.main.wanting import Agent

if TYPE_CHECKING:
    from modelcache.agent.engine import Engine
    from modelcache.agent.snapshot import Snapshot
    from modelcache.domain.manifests import ModelId
    from modelcache.domain.refs import Ref
    from modelcache.domain.volumes import Volume
    from modelcache.store import Store as ModelStore
    from modelcache.transfer.report import Progress

WAIT_S: Final = 0.25  # how often a signal is looked for
VOLUME_PREFIX: Final = "mount-"  # of what commands have mounted

Tell = Callable[[dict[str, Any]], None]

Target = Annotated[Path, typer.Argument(metavar="DIR", help="Where; made if it is not there.")]


@app.command()
def mount(  # noqa: PLR0917 - one parameter for each option
    ref: RefArgument,
    target: Target,
    include: Include = None,
    exclude: Exclude = None,
    store: Store = None,
    config: Config = None,
    limit_rate: Annotated[
        str | None, typer.Option("--limit-rate", metavar="100MB", help="Most bytes a second.")
    ] = None,
    read_timeout: Annotated[
        str | None,
        typer.Option("--read-timeout", metavar="2m", help="Longest time that a read waits."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="With --stream: where to say what goes wrong."),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent", metavar="SOCKET|URL", help="Have an agent do it, and look after it."
        ),
    ] = None,
    *,
    stream: Annotated[
        bool, typer.Option("--stream", help="At once: what is read comes first.")
    ] = False,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="With --stream: serve in this process until unmounted."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a model at a directory, read-only. Needs root.

    Without --stream when all of it is here. With it at once: every file is there with its size, a
    read waits for the bytes that it needs, and the rest comes in the background.
    """
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415 - see the package

    parsed = parse_ref(ref).filtered(split_globs(include), split_globs(exclude))
    place = Path(os.path.abspath(target.expanduser()))  # noqa: PTH100 - links stay
    if foreground and (agent or not stream):
        raise UsageError("--foreground is for --stream without an agent; others need no process")
    tell = partial(_tell, as_json=as_json, quiet=quiet)
    if agent:
        tell(_by_agent(agent, parsed, place, stream=stream))
        return
    _make_folder(place)
    flags = {
        "--limit-rate": ("transfer.bandwidth_limit_bytes_s", limit_rate),
        "--read-timeout": ("stream.read_timeout_s", read_timeout),
    }
    last: list[Progress] = []
    with engine_for(store, config, flags=flags) as engine:
        if stream and foreground:
            _serve(engine, parsed, place, tell)
        elif stream:
            tell(_in_background(partial(_serve, engine, parsed, place), log))
        else:
            with cancellation(last) as cancel:
                snapshot = engine.pull(
                    parsed, cancel=cancel, progress=lambda now: last.__setitem__(slice(None), [now])
                )
            tell(_bind(engine, snapshot, place))


@app.command()
def unmount(
    target: Target,
    store: Store = None,
    config: Config = None,
    agent: Agent = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take away what is mounted at a directory, by whomever; done already is done.

    Who has a file of it open keeps that file.
    """
    from modelcache import mounts  # noqa: PLC0415 - see the package
    from modelcache.faces import present  # noqa: PLC0415

    place = Path(os.path.abspath(target.expanduser()))  # noqa: PTH100 - links stay
    found = _unpublished(agent, place)
    found = mounts.unmount(place) or found
    with suppress(StoreError), engine_for(store, config) as engine:
        _forget(engine.store)
    if as_json:
        present.print_json({"unmounted": found})
    elif not quiet:
        say("unmounted" if found else "nothing was mounted there")


@app.command()
def holder(
    socket: Annotated[
        Path, typer.Option("--socket", metavar="PATH", help="Where the agent finds it.")
    ] = Path("/run/modelcache/holder.sock"),
) -> None:
    """Keep streaming mounts alive while their agent is being restarted.

    Agents start one themselves; run it where what an agent has started is killed with it.
    """
    # Anew, without all that commands load: it stays for as long as the node does.
    arguments = [sys.executable, "-m", "modelcache.mounts.holder", str(socket), "--stay"]
    os.execv(sys.executable, arguments)  # noqa: S606 - ourselves


def _tell(told: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from modelcache.faces import present  # noqa: PLC0415 - see the package

    if as_json:
        present.print_json(told)
    elif not quiet:
        typer.echo(told["target"])
    sys.stdout.flush()


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MountFailed(f"cannot make the folder {place}: {error.strerror}") from error


def _by_agent(agent: str, ref: Ref, place: Path, *, stream: bool) -> dict[str, Any]:
    """Have an agent publish a volume, and wait for that. Raises what the model failed with."""
    from modelcache.domain.volumes import MountMode, VolumeRequest  # noqa: PLC0415
    from modelcache.domain.wanted import ModelPhase  # noqa: PLC0415
    from modelcache.errors import NotInStore, NotWarmYet  # noqa: PLC0415
    from modelcache.main.extras import needs_extra  # noqa: PLC0415

    mode = MountMode.STREAM if stream else MountMode.FULL
    request = VolumeRequest(_volume_id(place), str(place), ref, mode=mode)
    with needs_extra():
        from modelcache.client import error_of, find_agent  # noqa: PLC0415

        with find_agent(agent) as client:
            while True:
                with suppress(NotWarmYet):
                    volume = client.publish(request)
                    return {"target": str(place), "model_id": volume.model_id, "mode": volume.mode}
                with suppress(NotInStore):
                    status = client.status(ref, wait_s=WAIT_S)
                    if status.phase is ModelPhase.FAILED and status.trouble is not None:
                        client.unpublish(request.volume_id, request.target)
                        raise error_of(status.trouble)


def _unpublished(agent: str | None, place: Path) -> bool:
    """Have the agent forget its volume there, if there is an agent, and it has one."""
    from modelcache.errors import AgentUnavailable  # noqa: PLC0415 - see the package

    try:
        from modelcache.client import find_agent  # noqa: PLC0415

        with find_agent(agent) as client:
            mine = [each for each in client.volumes() if each.target == str(place)]
            return sum(client.unpublish(each.volume_id, each.target) for each in mine) > 0
    except (AgentUnavailable, ImportError):
        if agent:
            raise
        return False


def _volume_id(place: Path) -> str:
    return f"{VOLUME_PREFIX}{sha256(os.fsencode(place)).hexdigest()[:40]}"


def _bind(engine: Engine, snapshot: Snapshot, place: Path) -> dict[str, Any]:
    """Show a warm model, and protect it while it is shown."""
    from modelcache import mounts  # noqa: PLC0415 - see the package

    mounts.unmount(place)
    _forget(engine.store)
    volume = _protect(engine.store, place, snapshot.model_id, snapshot.ref)
    try:
        mounts.bind_read_only(snapshot.path, place)
    except ModelcacheError:
        engine.store.drop_volume(volume)
        raise
    return {"target": str(place), "model_id": snapshot.model_id, "mode": "full"}


def _protect(store: ModelStore, place: Path, model_id: ModelId, ref: str) -> Volume:
    """Keep a model from eviction while it is mounted at a place, whoever lives. ref: redacted."""
    from modelcache.agent.clock import wall_clock_s  # noqa: PLC0415
    from modelcache.domain.volumes import Volume  # noqa: PLC0415

    volume = Volume(_volume_id(place), str(place), model_id, ref, since_s=wall_clock_s())
    store.keep_volume(volume)
    return volume


def _forget(store: ModelStore) -> None:
    """Protect nothing any more for mounts of ours that somebody has taken away."""
    from modelcache import mounts  # noqa: PLC0415 - see the package

    for volume in store.volumes():
        ours = volume.volume_id.startswith(VOLUME_PREFIX)
        if ours and not mounts.mounts_at(Path(volume.target)):
            store.drop_volume(volume)


def _in_background(serve: Callable[[Tell], None], log: Path | None) -> dict[str, Any]:
    """Serve in a process that outlives this one; what it tells when it is ready.

    A fork: nothing runs here yet but this thread, and all that it needs is loaded. log: where it
    says what happens later. Raises what it fails with before it is ready.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        _detached(serve, writing, log)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if not said:
        raise MountFailed("the serving process ended at once; --foreground shows why")
    told: dict[str, Any] = json.loads(said)
    if "error" in told:
        raise error_named(told["error"]["code"], told["error"]["message"], MountFailed)
    return told


def _detached(serve: Callable[[Tell], None], writing: int, log: Path | None) -> NoReturn:
    """The rest of the life of the serving process."""

    def tell(told: dict[str, Any]) -> None:
        os.write(writing, json.dumps(told).encode())
        os.close(writing)

    code = 1
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else quiet
        for number, fd in enumerate((quiet, quiet, errors)):
            os.dup2(fd, number)
        serve(tell)
        code = 0
    except ModelcacheError as error:
        with suppress(OSError):  # told already: then the log has it
            tell({"error": {"code": error.code, "message": error.message}})
        say(f"modelcache: {error.message}")
    finally:
        os._exit(code)


def _serve(engine: Engine, ref: Ref, place: Path, tell: Tell) -> None:
    """Stream until it is unmounted, or a signal comes. What is warm is only mounted.

    tell: is given what there is to say as soon as it is mounted.
    """
    from modelcache.agent.mounting import StreamingPull  # noqa: PLC0415 - see the package
    from modelcache.agent.snapshot import Snapshot  # noqa: PLC0415

    def report(what: str, **details: Any) -> None:  # noqa: ANN401
        say(f"modelcache: {what}: " + ", ".join(f"{k} {v}" for k, v in details.items()))

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())

    def covering(model_id: ModelId) -> None:
        _protect(engine.store, place, model_id, ref.redacted())

    pull = StreamingPull(engine, ref, place, report, covering=covering)
    begun = pull.begin(stopped)
    if isinstance(begun, Snapshot):
        tell(_bind(engine, begun, place))
        return
    tell({"target": str(place), "model_id": begun.manifest.model_id, "mode": "stream"})
    try:
        while not begun.wait(WAIT_S) and not stopped.is_set():
            pass
    finally:
        pull.close()
        with suppress(StoreError):
            _forget(engine.store)
