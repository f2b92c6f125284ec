"""What a caller means by a model: a directory, a file, or something in the store or on its way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modelcache.errors import StoreError, UsageError
from modelcache.loader.header import shown
from modelcache.loader.loading import Folder, Model

if TYPE_CHECKING:
    from modelcache.agent import Engine
    from modelcache.config import Settings
    from modelcache.domain.manifests import ModelId
    from modelcache.domain.refs import Ref

LEASE: Final = "load"


class Through(StrEnum):
    """How a ref's bytes come here."""

    STORE = "store"  # pulled into this user's store, and read while they arrive
    ORIGIN = "origin"  # into memory alone
    AGENT = "agent"  # brought by an agent of this node, and read from it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a caller wants a model from. agent: the address of one, if not this node's."""

    model: str | Path
    through: str = Through.STORE
    direct: bool = True
    store: Path | str | None = None
    settings: Settings | None = None
    max_age_s: float | None = None
    agent: str | None = None

    def check(self) -> None:
        """Raises UsageError for what can be seen to be wrong before anything is asked."""
        if self.through not in set(Through):
            known = ", ".join(Through)
            raise UsageError(f"through {shown(str(self.through))} is none of {known}")
        if self.agent is not None and self.through != Through.AGENT:
            raise UsageError('agent is the address of one to load through; say through="agent"')

    def open(self) -> Model:
        """Raises NotFound, NotInStore, UsageError, and what resolving raises."""
        path = _path(self.model)
        if path is not None:
            return Folder(path, direct=self.direct)
        from modelcache.config import load_settings  # noqa: PLC0415 - a directory needs none of it

        what = str(self.model)
        chosen = self.settings or load_settings()
        if self.store is not None:
            chosen = chosen.with_store(Path(self.store).expanduser().absolute())
        if self.through == Through.AGENT:
            return _of_agent(what, chosen, self.agent, direct=self.direct)
        if "://" not in what:
            return _stored(what, chosen, direct=self.direct)
        from modelcache.domain.refs import parse_ref  # noqa: PLC0415

        ref = parse_ref(what)
        if self.through == Through.ORIGIN:
            from modelcache.loader.origin import origin_model  # noqa: PLC0415

            return origin_model(chosen, ref)
        return _arriving(ref, chosen, self.max_age_s, direct=self.direct)


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
        return _held(arrival.engine, arrival.warm.model_id, arrival.warm.path, direct=direct)
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

    engine = Engine(settings, write=False)
    return _held(engine, engine.store.find(what), engine.path(what), direct=direct)


def _held(engine: Engine, model_id: ModelId, path: Path, *, direct: bool) -> Folder:
    """A warm model's files, or its copy's in memory, protected from eviction while they are read.

    Who may not write to the store reads all the same: open files outlive their eviction.
    """
    release: Callable[[], None] | None = None
    with suppress(StoreError):
        release = engine.store.hold(model_id, LEASE, "loading tensors").release
    return Folder(engine.memory.copy_path(model_id) or path, direct=direct, release=release)
