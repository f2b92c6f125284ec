"""Fixtures: a driver, and a folder that stands for kubelet's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.config import Settings
from tests.agent.nodes import Models, node_settings
from tests.csi.driver import NODE, Driver, running_driver
from tests.kernel.roots import targets
from tests.servers.nginx import Nginx


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Path]:
    with targets(tmp_path / "pods") as folder:
        yield folder


@pytest.fixture
def chosen(tmp_path: Path, pods: Path) -> Settings:
    return node_settings(
        tmp_path / "store",
        node=NODE,
        socket=tmp_path / "agent.sock",
        listen="",
        volume_roots=(str(pods),),
    )


@pytest.fixture
def driver(chosen: Settings, tmp_path: Path) -> Iterator[Driver]:
    with running_driver(chosen, tmp_path / "csi.sock") as running:
        yield running


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, root = web
    made = Models(server.url, root)
    yield made
    made.close()
