"""A store on the disk of `tmp_path`, and a disk that need not be waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.store import Store, files
from tests.store.support import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs that sync nothing: what the kernel has outlives a killed process anyway."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(files, "sync_filesystem", lambda _: None)
