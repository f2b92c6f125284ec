"""Streams that the snapshot of their model covers, on the real kernel.

Passthrough is switched off: it is as on a kernel that does not have it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.errors import MountFailed
from modelcache.mounts import (
    bind_read_only,
    cover,
    mounts_at,
    mounts_below,
    syscalls,
    top_at,
    unmount,
)
from modelcache.mounts.fuse import FILESYSTEM, Channel
from tests.agent.support import random_bytes
from tests.kernel.roots import needs_root
from tests.kernel.streams import (
    CHUNK_BYTES,
    END_S,
    WAIT_S,
    Mount,
    kernel,
    needs_fuse,
    reading,
    result,
    streaming,
    until,
)
from tests.main.support import Shell
from tests.servers.faults import FaultProxy, Waiting
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.kernel, needs_root, pytest.mark.timeout(240)]

CHUNKS = 3
DATA = random_bytes(CHUNKS * CHUNK_BYTES + 777)
CONFIG = b'{"hidden_size": 8}'
WITHOUT = {"MODELCACHE_STREAM_PASSTHROUGH": "false"}
NAME = "modelcache:0123456789ab"


@pytest.fixture
def rest() -> Waiting:
    """Of the weights; it does not come before it is released."""
    return Waiting(2 * CHUNK_BYTES)


@pytest.fixture
def proxy(web: tuple[Nginx, Path], rest: Waiting) -> Iterator[FaultProxy]:
    server, folder = web
    (folder / "weights.bin").write_bytes(DATA)
    (folder / "sub").mkdir()
    (folder / "sub" / "config.json").write_bytes(CONFIG)
    with FaultProxy(server.url) as running:
        running.plan = rest
        yield running
        rest.release()


def mounted(root: Path, name: str = NAME) -> Path:
    """A mount that somebody has given a name."""
    target = root / "t"
    target.mkdir(exist_ok=True)
    syscalls.mount(name, str(target), "tmpfs", 0, "")
    return target


def ids(target: Path) -> list[int]:
    return [each.mount_id for each in mounts_at(target)]


# The cover itself


def test_a_cover_shows_other_files_to_who_opens_them_and_lets_nobody_write(
    source: Path, root: Path
):
    target = mounted(root)
    (target / "weights").write_bytes(b"before")
    with (target / "weights").open("rb") as held:
        assert cover(source, target, NAME)
        assert held.read() == b"before"
    assert (target / "weights").read_bytes() == b"w" * 10
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "new").touch()
    _, covering = mounts_at(target)
    assert covering.read_only
    assert {"nosuid", "nodev"} <= covering.options
    assert unmount(target)
    assert mounts_below(root) == []


def test_what_is_covered_is_not_covered_again(source: Path, root: Path):
    target = mounted(root)
    assert cover(source, target, NAME)
    assert not cover(source, target, NAME)
    assert len(mounts_at(target)) == 2


@pytest.mark.parametrize("what", ["another mount", "a folder", "a link to it", "nothing"])
def test_only_the_mount_that_is_meant_is_covered(source: Path, root: Path, what: str):
    target = mounted(root, "modelcache:of another model")
    if what == "a folder":
        target = root / "plain"
        target.mkdir()
    elif what == "a link to it":
        unmount(target)
        mounted(root)
        target = root / "link"
        target.symlink_to(root / "t")
    elif what == "nothing":
        target = root / "missing"
    assert not cover(source, target, NAME)
    assert len(mounts_below(root)) == 1


def test_a_cover_that_cannot_be_is_told_in_one_line_and_leaves_nothing(source: Path, root: Path):
    target = mounted(root)
    with pytest.raises(MountFailed, match=r"cannot mount over .*/t: No such file"):
        cover(source / "missing", target, NAME)
    assert len(mounts_at(target)) == 1


def test_a_mount_that_is_gone_meanwhile_is_not_covered(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is unmounted between the look and the move: the real calls, in that order."""
    target = mounted(root)
    move = syscalls.move_mount_onto

    def late(fd: int, place: int) -> None:
        assert unmount(target)
        move(fd, place)

    monkeypatch.setattr(syscalls, "move_mount_onto", late)
    assert not cover(source, target, NAME)
    assert mounts_below(root) == []


def test_what_comes_while_it_is_unmounted_goes_as_well(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    target = mounted(root)
    take_away = syscalls.umount
    covers = [lambda: cover(source, target, NAME)]

    def late(path: str, flags: int) -> None:
        assert all(each() for each in covers)
        covers.clear()
        take_away(path, flags)

    monkeypatch.setattr(syscalls, "umount", late)
    assert unmount(target)
    assert covers == []
    assert mounts_below(root) == []


def test_what_another_mount_hides_is_left_alone(source: Path, root: Path):
    (root / "parent" / "t").mkdir(parents=True)
    (source / "t").mkdir()
    target = root / "parent" / "t"
    bind_read_only(source, target)
    bind_read_only(source, root / "parent")
    assert not unmount(target)
    assert len(mounts_at(target)) == 1
    assert unmount(root / "parent")
    assert unmount(target)


@needs_fuse
def test_who_serves_the_mount_is_asked_for_nothing(source: Path, root: Path):
    """Nobody serves it, so whatever were asked would wait for ever."""
    target = root / "t"
    target.mkdir()
    channel = Channel.open()
    try:
        channel.mount(target, NAME)
        assert cover(source, target, NAME)
        assert not cover(source, target, NAME)
        seen = top_at(target)
        assert seen is not None
        assert seen.filesystem != FILESYSTEM
        assert (target / "weights").read_bytes() == b"w" * 10
        assert unmount(target)
    finally:
        channel.close()
    assert mounts_below(root) == []


# Streams


@contextmanager
def covered(tmp_path: Path, proxy: FaultProxy, rest: Waiting) -> Iterator[tuple[Mount, int]]:
    """A stream that its snapshot covers by now, and a descriptor from before that."""
    with streaming(tmp_path, f"{proxy.url}/", **WITHOUT) as mount:
        early = os.open(mount.target / "weights.bin", os.O_RDONLY)
        try:
            assert os.pread(early, 10, 0) == DATA[:10]
            assert len(mounts_at(mount.target)) == 1
            rest.release()
            until(lambda: len(mounts_at(mount.target)) == 2, f"not covered: {mount.lines()}")
            yield mount, early
        finally:
            os.close(early)


@needs_fuse
def test_a_complete_model_is_read_as_from_a_bind_mount_and_nobody_is_asked(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path
):
    with covered(tmp_path, proxy, rest) as (mount, early):
        snapshot = next((mount.store / "snapshots").iterdir())
        assert mounts_at(mount.target)[0].filesystem == FILESYSTEM
        for name in ("weights.bin", "sub/config.json"):
            seen, stored = (mount.target / name).stat(), (snapshot / name).stat()
            for what in ("st_ino", "st_dev", "st_mode", "st_mtime_ns", "st_uid", "st_size"):
                assert getattr(seen, what) == getattr(stored, what), what
        digest = "import hashlib; print(hashlib.sha256(view('weights.bin')).hexdigest())"
        os.kill(mount.process.pid, signal.SIGSTOP)
        try:
            through = result(reading(mount.target, digest))
        finally:
            os.kill(mount.process.pid, signal.SIGCONT)
        assert through == result(reading(snapshot, digest))
        assert os.pread(early, CHUNK_BYTES, CHUNK_BYTES) == DATA[CHUNK_BYTES : 2 * CHUNK_BYTES]
        assert os.pread(early, CHUNK_BYTES, 3 * CHUNK_BYTES) == DATA[3 * CHUNK_BYTES :]
        assert mount.lines() == []


def _command(mount: Mount) -> None:
    assert Shell(mount.store).run("unmount", mount.target).err == "unmounted\n"


def _terminated(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGTERM)


def _interrupted(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGINT)


def _by_hand(mount: Mount) -> None:
    for _ in range(2):  # the cover, and the stream beneath it
        subprocess.run(["umount", mount.target], check=True)


@needs_fuse
@pytest.mark.parametrize("end", [_command, _terminated, _interrupted, _by_hand])
def test_however_a_covered_stream_ends_nothing_is_left(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path, end: Callable[[Mount], None]
):
    with covered(tmp_path, proxy, rest) as (mount, early):
        shell = Shell(mount.store)
        assert "is protected" in shell.run("rm", f"{proxy.url}/").complaint
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), early)  # or it were busy
        end(mount)
        until(lambda: mounts_below(tmp_path) == [], "something is left")
        assert list(mount.target.iterdir()) == []
        mount.process.terminate()  # or it were to wait for copies in others' mount namespaces
        mount.process.wait(END_S)
        assert shell.run("rm", f"{proxy.url}/").code == 0


@needs_fuse
def test_a_covered_stream_outlives_who_served_it_and_its_model_is_kept(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path
):
    with covered(tmp_path, proxy, rest) as (mount, early):
        shell = Shell(mount.store)
        mount.process.kill()
        mount.process.wait(WAIT_S)
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.pread(early, 10, 2 * CHUNK_BYTES)
        assert (mount.target / "weights.bin").read_bytes() == DATA
        assert "is protected" in shell.run("rm", f"{proxy.url}/").complaint
        assert shell.run("unmount", mount.target).err == "unmounted\n"
        assert mounts_below(tmp_path) == []
        assert shell.run("rm", f"{proxy.url}/").code == 0


@needs_fuse
def test_a_model_that_is_removed_by_force_is_gone_as_from_a_bind_mount(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path
):
    with (
        covered(tmp_path, proxy, rest) as (mount, _),
        (mount.target / "weights.bin").open("rb") as held,
    ):
        assert Shell(mount.store).run("rm", "--force", f"{proxy.url}/").code == 0
        assert not (mount.target / "weights.bin").exists()
        assert held.read() == DATA


@needs_fuse
@pytest.mark.parametrize("propagation", ["slave", "private"])
def test_a_cover_is_seen_in_containers_that_mounts_come_to(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path, propagation: str
):
    """Others go on through the stream. A pod's mountPropagation decides which it is."""
    code = f"""
import os, sys
target = {str(tmp_path / "mnt")!r}
for _ in sys.stdin:
    size = len(open(target + "/weights.bin", "rb").read())
    print(os.stat(target + "/weights.bin").st_dev, size, flush=True)
"""
    with streaming(tmp_path, f"{proxy.url}/", **WITHOUT) as mount:
        subprocess.run(["mount", "--make-shared", mount.target], check=True)
        container = subprocess.Popen(
            ["unshare", "-m", "--propagation", propagation, sys.executable, "-u", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert container.stdin is not None
        assert container.stdout is not None

        def look() -> tuple[int, int]:
            container.stdin.write("\n")
            container.stdin.flush()
            device, size = container.stdout.readline().split()
            return int(device), int(size)

        try:
            before = (mount.target / "sub").stat().st_dev
            rest.release()
            assert look()[1] == len(DATA)  # once it is here, or before
            until(lambda: len(mounts_at(mount.target)) == 2, "not covered")
            here = (mount.target / "sub").stat().st_dev
            assert here != before
            assert look() == (here if propagation == "slave" else before, len(DATA))
            assert Shell(mount.store).run("unmount", mount.target).code == 0
            assert mounts_at(mount.target) == []
        finally:
            container.stdin.close()
            container.wait(WAIT_S)
            container.stdout.close()


@needs_fuse
@pytest.mark.skipif(kernel() < (6, 9), reason="passthrough came with Linux 6.9")
def test_where_the_kernel_refuses_passthrough_the_model_covers_its_stream(
    proxy: FaultProxy, rest: Waiting, tmp_path: Path
):
    """It does for files of an overlay, such as a container's own file system is."""
    store = tmp_path / "store"
    for each in ("upper", "work", "lower", "store"):
        (tmp_path / each).mkdir()
    options = ",".join(f"{each}dir={tmp_path / each}" for each in ("upper", "work", "lower"))
    try:
        syscalls.mount("overlay", str(store), "overlay", 0, options)
    except OSError as error:
        pytest.skip(f"no overlay can be mounted here: {error.strerror}")
    try:
        with streaming(tmp_path, f"{proxy.url}/") as mount:
            assert (mount.target / "sub" / "config.json").read_bytes() == CONFIG
            assert len(mounts_at(mount.target)) == 1
            rest.release()

            def covered() -> bool:
                assert (mount.target / "weights.bin").read_bytes()[-777:] == DATA[-777:]
                return len(mounts_at(mount.target)) == 2

            until(covered, f"not covered: {mount.lines()}")
            assert (mount.target / "weights.bin").read_bytes() == DATA
            assert sum("no_passthrough" in line for line in mount.lines()) == 1
    finally:
        unmount(store)
