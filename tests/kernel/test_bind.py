"""Bind mounts on the real kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.errors import MountFailed
from modelcache.mounts import bind_read_only, mounts_at, mounts_below, unmount
from tests.kernel.roots import needs_root

pytestmark = [pytest.mark.kernel, needs_root]


def test_a_bind_mount_shows_the_files_and_lets_nobody_write(source: Path, root: Path):
    target = root / "a b\ttä"  # what the table escapes, and what it does not
    target.mkdir()
    bind_read_only(source, target)
    assert (target / "weights").read_bytes() == b"w" * 10
    for write in (
        lambda: (target / "weights").write_bytes(b""),
        (target / "new").touch,
        (target / "weights").unlink,
        lambda: os.utime(target / "weights"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            write()
    (mounted,) = mounts_at(target)
    assert mounted.read_only
    assert {"nosuid", "nodev"} <= mounted.options
    (source / "weights").write_bytes(b"x")  # the source itself is as it was
    assert (target / "weights").read_bytes() == b"x"


def test_what_is_unmounted_is_gone_and_open_files_go_on(source: Path, root: Path):
    target = root / "t"
    target.mkdir()
    bind_read_only(source, target)
    with (target / "weights").open("rb") as held:
        assert unmount(target)
        assert held.read() == b"w" * 10
    assert list(target.iterdir()) == []
    assert not unmount(target)


def test_mounts_on_one_another_are_all_taken_away(source: Path, root: Path):
    target = root / "t"
    target.mkdir()
    bind_read_only(source, target)
    bind_read_only(source, target)
    assert len(mounts_at(target)) == 2
    assert unmount(target)
    assert mounts_below(root) == []


def test_what_cannot_be_mounted_is_told_in_one_line(source: Path, root: Path):
    with pytest.raises(MountFailed, match=r"cannot mount at .*missing: No such file"):
        bind_read_only(source, root / "missing")
    target = root / "t"
    target.mkdir()
    with pytest.raises(MountFailed, match="No such file"):
        bind_read_only(source / "missing", target)
    assert mounts_at(target) == []
