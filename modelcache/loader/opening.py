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


class Through(StrEnum):
    """How a ref's bytes come here."""

    STORE = "store"  # pulled into this user's store, and read while they arrive
    ORIGIN = "origin"  # into memory alone


def opened(
    model: str | Path,
    *,
    through: str,
    direct: bool,
    store: Path | str | None,
    settings: Settings | None,
    max_age_s: float | None,
) -> Model:
    """Raises NotFound, NotInStore, UsageError, and what resolving raises."""
    if through not in set(Through):
        raise UsageError(f"through {shown(str(through))} is none of {', '.join(Through)}")
    if isinstance(model, Path) or "://" not in model:
        path = Path(model).expanduser()
        if path.exists() or isinstance(model, Path) or "/" in model:
            return Folder(path, direct=direct)
    from modelcache.config import load_settings  # noqa: PLC0415 - a directory needs none of it

    chosen = settings or load_settings()
    if store is not None:
        chosen = chosen.with_store(Path(store).expanduser().absolute())
    if "://" not in str(model):
        return _stored(str(model), chosen, direct=direct)
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415

    ref = parse_ref(str(model))
    if through == Through.ORIGIN:
        from modelcache.loader.origin import origin_model  # noqa: PLC0415

        return origin_model(chosen, ref)
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


def _stored(what: str, settings: Settings, *, direct: bool) -> Model:
    from modelcache.agent import Engine  # noqa: PLC0415

    with Engine(settings, write=False) as engine:
        path = engine.path(what)
        return Folder(engine.memory.copy_path(engine.store.find(what)) or path, direct=direct)
