"""A folder for targets, with nothing left mounted below it at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.mounts import mounts_below, unmount

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextmanager
def targets(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    try:
        yield folder
    finally:
        for mounted in reversed(mounts_below(folder)):
            unmount(Path(mounted.target))
