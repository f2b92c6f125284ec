"""What a caller means by a model: a directory, a file, or something in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.loader.loading import Folder, Model

if TYPE_CHECKING:
    from modelcache.config import Settings


def opened(
    model: str | Path,
    *,
    direct: bool,
    store: Path | str | None,
    settings: Settings | None,
) -> Model:
    """Raises NotFound, NotInStore, UsageError."""
    if isinstance(model, Path) or "://" not in model:
        path = Path(model).expanduser()
        if path.exists() or isinstance(model, Path) or "/" in model:
            return Folder(path, direct=direct)
    from modelcache.agent import Engine  # noqa: PLC0415 - a directory needs none of it
    from modelcache.config import load_settings  # noqa: PLC0415

    chosen = settings or load_settings()
    if store is not None:
        chosen = chosen.with_store(Path(store).expanduser().absolute())
    with Engine(chosen, write=False) as engine:
        return Folder(engine.path(str(model)), direct=direct)
