"""What a caller means by a model: a directory, a file, or something in the store or on its way."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.errors import UsageError
from modelcache.loader.header import shown
from modelcache.loader.loading import Folder, Model

if TYPE_CHECKING:
    from modelcache.config import Settings
    from modelcache.domain.refs import Ref


class Through(StrEnum):
    """How a ref's bytes come here."""

    STORE = "store"  # pulled into this user's store, and read while they arrive
    ORIGIN = "origin"  # into memory alone
    AGENT = "agent"  # brought by an agent of this node, and read from it


def opened(
    model: str | Path,
    *,
    through: str,
    direct: bool,
    store: Path | str | None,
    settings: Settings | None,
    max_age_s: float | None,
    agent: str | None,
) -> Model:
    """Raises NotFound, NotInStore, UsageError, and what resolving raises."""
    _check(through, agent)
    path = _path(model)
    if path is not None:
        return Folder(path, direct=direct)
    from modelcache.config import load_settings  # noqa: PLC0415 - a directory needs none of it

    chosen = settings or load_settings()
    if store is not None:
        chosen = chosen.with_store(Path(store).expanduser().absolute())
    if through == Through.AGENT:
        return _of_agent(str(model), chosen, agent, direct=direct)
    if "://" not in str(model):
        return _stored(str(model), chosen, direct=direct)
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415

    ref = parse_ref(str(model))
    if through == Through.ORIGIN:
        from modelcache.loader.origin import origin_model  # noqa: PLC0415

        return origin_model(chosen, ref)
    return _arriving(ref, chosen, max_age_s, direct=direct)


def _check(through: str, agent: str | None) -> None:
    if through not in set(Through):
        raise UsageError(f"through {shown(str(through))} is none of {', '.join(Through)}")
    if agent is not None and through != Through.AGENT:
        raise UsageError('agent is the address of one to load through; say through="agent"')


def _path(model: str | Path) -> Path | None:
    """The directory or file that is meant; None for a ref, and for what can only be an id."""
    if isinstance(model, str) and "://" in model:
        return None
    path = Path(model).expanduser()
    meant = path.exists() or isinstance(model, Path) or "/" in model
    return path if meant else None


def _arriving(ref: Ref, chosen: Settings, max_age_s: float | None, *, direct: bool) -> Model:
    from modelcache.agent import Engine  # noqa: PLC0415
    from modelcache.loader.arriving import Arrival, ArrivingModel  # noqa: PLC0415

    arrival = Arrival(Engine(chosen), ref, max_age_s)
    arrival.begin()
    if arrival.warm is not None:
        arrival.stop()
        copied = arrival.engine.memory.copy_path(arrival.warm.model_id)
        return Folder(copied or arrival.warm.path, direct=direct)
    assert arrival.manifest is not None  # noqa: S101 - one of the two
    return ArrivingModel(arrival, arrival.manifest)


def _of_agent(what: str, settings: Settings, agent: str | None, *, direct: bool) -> Model:
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415

    try:
        from modelcache.client import find_agent  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this needs {error.name}, which is not installed; install modelcache[agent]"
        ) from error
    from modelcache.loader.remote import remote_model  # noqa: PLC0415

    if "://" not in what:
        raise UsageError("an agent is asked for a ref: s3://…, hf://…")
    client = find_agent(agent, socket=settings.agent.socket.expanduser())
    return remote_model(client, parse_ref(what), direct=direct)


def _stored(what: str, settings: Settings, *, direct: bool) -> Model:
    from modelcache.agent import Engine  # noqa: PLC0415

    with Engine(settings, write=False) as engine:
        path = engine.path(what)
        return Folder(engine.memory.copy_path(engine.store.find(what)) or path, direct=direct)
