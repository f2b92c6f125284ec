"""Filesystems of a test's own: small ones, read-only ones, and such as share extents."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_IMAGE_BYTES: Final = 320 << 20  # sparse; the least that mkfs.xfs accepts is 300 MiB
_ADMIN_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def run(*command: str | Path) -> None:
    """Run a command or skip the test, with its words."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")


@contextmanager
def mounted(path: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mount something at `path` for a while."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path.mkdir(exist_ok=True)
    run("mount", *arguments, path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def tmpfs(path: Path, size_bytes: int) -> Iterator[Path]:
    """A disk in memory that is soon full."""
    with mounted(path, "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs") as found:
        yield found


@contextmanager
def sharing_filesystem(path: Path) -> Iterator[Path]:
    """An XFS or Btrfs in a file: filesystems that can share extents between files."""
    image = path.with_suffix(".image")
    for kind in ("xfs", "btrfs"):
        program = shutil.which(f"mkfs.{kind}", path=_ADMIN_PATH)
        if program is not None:
            with image.open("wb") as file:
                file.truncate(_IMAGE_BYTES)
            run(program, "-q", image)
            with mounted(path, "-t", kind, "-o", "loop", image) as found:
                yield found
            return
    pytest.skip("neither mkfs.xfs nor mkfs.btrfs is here")
