"""Fixtures: a shell over a fresh store, and a small model to pull."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.sources.web import asking
from tests.agent.support import random_bytes
from tests.main.support import Shell
from tests.servers.faults import FaultProxy
from tests.servers.nginx import Nginx

MIB = 1 << 20
CHUNK = "2MiB"
FILES = {
    "a.safetensors": random_bytes(6 * MIB + 5, 1),
    "b.safetensors": random_bytes(5 * MIB, 2),
    "config.json": b"{}",
    "sub/vocab.txt": b"words\n" * 50,
}


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what runs in this process."""
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Commands over a store that nobody has made yet; small chunks, so that files have several."""
    return Shell(tmp_path / "store", MODELCACHE_STORE_CHUNK_BYTES=CHUNK)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model on the disk."""
    return write(tmp_path / "model")


@pytest.fixture
def origin(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    """The model behind nginx and a proxy that counts what is asked; FILES at its root."""
    server, root = web
    write(root)
    with FaultProxy(server.url) as proxy:
        yield proxy


def write(root: Path) -> Path:
    """Write FILES below a folder."""
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
