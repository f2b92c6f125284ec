"""What is mounted, and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.roots import targets


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for targets."""
    with targets(tmp_path / "targets") as folder:
        yield folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a file."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 10)
    return folder
