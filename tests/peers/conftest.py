"""Fixtures: a folder of blobs, a token, and the certificates of a cluster."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.peers.support import TOKEN, FolderShelf, blob_id
from tests.servers.certificates import Authority

DATA = random.Random(1).randbytes((5 << 19) + 77)  # two chunks and a half, and a bit


@pytest.fixture
def shelf(tmp_path: Path) -> FolderShelf:
    """Blob 0 is there."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    found = FolderShelf(folder)
    found.add(blob_id(), DATA)
    return found


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
