"""What tests of whole pulls share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelcache.agent import Engine, Snapshot
from modelcache.config import BLOCK_BYTES, Settings, load_settings
from modelcache.domain.refs import parse_ref

CHUNK_BYTES = 2 * BLOCK_BYTES  # small chunks, so that a few MiB have several


def settings(store: Path, **transfer: Any) -> Settings:
    """Quick retries, small chunks, the given store."""
    base = load_settings(environment={})
    return replace(
        base,
        store=replace(base.store, path=store, chunk_bytes=CHUNK_BYTES),
        transfer=replace(base.transfer, **{"stall_timeout_s": 1.0, **transfer}),
    )


def pull(url: str, store: Path, **transfer: Any) -> Snapshot:
    """One pull in this process."""
    with Engine(settings(store, **transfer)) as engine:
        return engine.pull(parse_ref(url))


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Deterministic content."""
    return np.random.Generator(np.random.PCG64(seed)).bytes(size_bytes)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
