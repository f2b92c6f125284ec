"""Fixtures: settings of an agent with both faces, and models to want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.config import Settings
from tests.agent.nodes import Models, node_settings
from tests.faces.http.agents import Running, running_faces
from tests.servers.nginx import Nginx


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """A node named node-1, its socket and store below the test's folder."""
    return node_settings(
        tmp_path / "store", node="node-1", socket=tmp_path / "run/agent.sock", listen="127.0.0.1:0"
    )


@pytest.fixture
def faces(chosen: Settings) -> Iterator[Running]:
    """A working agent."""
    with running_faces(chosen) as running:
        yield running


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    """Models behind proxies."""
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()
