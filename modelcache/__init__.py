"""Make model weights appear on a node as fast as the hardware allows.

    import modelcache

    snapshot = modelcache.pull("s3://bucket/llama", include=["*.safetensors", "*.json"])
    print(snapshot.path)

Everything is loaded when it is first used: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable
    from pathlib import Path

    from modelcache.agent import Engine, ProgressCallback, Snapshot
    from modelcache.config import Settings
    from modelcache.loader import iter_tensors, load

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Snapshot",
    "__version__",
    "iter_tensors",
    "load",
    "load_settings",
    "pull",
]


def pull(
    ref: str,
    *,
    store: Path | str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    max_age_s: float | None = None,
    refresh: bool = False,
    progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
    settings: Settings | None = None,
) -> Snapshot:
    """Make the model that `ref` names warm on this machine, and return its snapshot.

    ref: as on the command line. store: the store's folder; default: the settings'. include,
    exclude: globs over file names. max_age_s: believe a ref that was resolved this recently
    without asking its origin. progress: called about ten times a second, in this thread, with a
    `modelcache.transfer.report.Progress`. cancel: set it, from anywhere, to stop. settings:
    default: from the configuration file and the environment.

    Finished chunks survive whatever happens, and the next call goes on from there; files that are
    here already are not fetched again. Raises a `modelcache.errors.ModelcacheError`, whose class
    says what to do: fix the input, wait, change something at the origin, make room.
    """
    from pathlib import Path  # noqa: PLC0415 - see the module

    from modelcache.agent import Engine  # noqa: PLC0415
    from modelcache.config import load_settings  # noqa: PLC0415
    from modelcache.domain.refs import parse_ref  # noqa: PLC0415

    parsed = parse_ref(ref).filtered(include, exclude)
    chosen = settings or load_settings()
    if store is not None:
        chosen = chosen.with_store(Path(store).expanduser().absolute())
    with Engine(chosen) as engine:
        return engine.pull(
            parsed, max_age_s=max_age_s, refresh=refresh, progress=progress, cancel=cancel
        )


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Load a public name when it is first asked for."""
    if name in {"Engine", "Snapshot"}:
        from modelcache import agent  # noqa: PLC0415

        return getattr(agent, name)
    if name in {"iter_tensors", "load"}:
        # By name: the package imports nothing above what it is imported by.
        return getattr(import_module("modelcache.loader"), name)
    if name == "load_settings":
        from modelcache.config import load_settings  # noqa: PLC0415

        return load_settings
    raise AttributeError(f"module 'modelcache' has no attribute {name!r}")
