"""A store on the disk of `tmp_path`."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.store import Store
from tests.store.support import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")
