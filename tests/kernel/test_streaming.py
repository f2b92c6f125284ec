"""Streaming mounts on the real kernel."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from modelcache.mounts import mounts_at
from modelcache.mounts.fuse.channel import READAHEAD_KB
from modelcache.store.residency import resident_bytes
from tests.agent.support import random_bytes
from tests.kernel.streams import (
    CHUNK_BYTES,
    END_S,
    WAIT_S,
    kernel,
    needs_fuse,
    reading,
    result,
    streaming,
    until,
)
from tests.main.support import Shell, chunks_kept
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.kernel, needs_fuse, pytest.mark.timeout(240)]

CHUNKS = 12
DATA = random_bytes(CHUNKS * CHUNK_BYTES + 777)
CONFIG = b'{"hidden_size": 8}'
MIB = 1 << 20


@pytest.fixture
def proxy(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    server, root = web
    (root / "weights.bin").write_bytes(DATA)
    (root / "sub").mkdir()
    (root / "sub" / "config.json").write_bytes(CONFIG)
    (root / "empty.txt").write_bytes(b"")
    with FaultProxy(server.url) as running:
        yield running


class Gate:
    """A plan: of the weights come the chunks that are let through, and none that is not."""

    def __init__(self, *chunks: int) -> None:
        self.chunks = set(chunks)

    def __call__(self, request: Request) -> Fault | None:
        if request.span is None or not request.path.endswith("weights.bin"):
            return None
        held = request.span[0] // CHUNK_BYTES not in self.chunks
        return Fault(stall_at=0) if held else None


def test_every_file_is_there_at_once_and_what_is_read_comes_first(
    proxy: FaultProxy, tmp_path: Path
):
    proxy.plan = Gate(7, 8)
    with streaming(tmp_path, f"{proxy.url}/") as mount:
        assert mount.told["mode"] == "stream"
        assert sorted(path.name for path in mount.target.iterdir()) == [
            "empty.txt",
            "sub",
            "weights.bin",
        ]
        status = (mount.target / "weights.bin").stat()
        assert (status.st_size, status.st_mode & 0o7777) == (len(DATA), 0o444)
        assert (mount.target / "sub" / "config.json").read_bytes() == CONFIG
        assert (mount.target / "empty.txt").read_bytes() == b""
        start = 8 * CHUNK_BYTES - 5000  # over the border of both chunks
        program = reading(mount.target, f"print(read('weights.bin', {start}, 10000).hex())")
        assert bytes.fromhex(result(program)) == DATA[start : start + 10_000]
        mapped = f"print(view('weights.bin')[{start}:{start + 10_000}].hex())"
        assert bytes.fromhex(result(reading(mount.target, mapped))) == DATA[start : start + 10_000]
        (mounted,) = mounts_at(mount.target)
        assert mounted.read_only
        assert {"nosuid", "nodev"} <= mounted.options
        with pytest.raises(OSError, match="Read-only file system"):
            (mount.target / "new").touch()
        with pytest.raises(FileNotFoundError):
            (mount.target / "missing").stat()
        with pytest.raises(OSError, match="Invalid argument"):
            (mount.target / "weights.bin").readlink()
        room = os.statvfs(mount.target)
        assert (room.f_bavail, room.f_files) == (0, 3)


def test_a_hundred_readers_of_what_arrives_see_no_wrong_byte(proxy: FaultProxy, tmp_path: Path):
    with streaming(tmp_path, f"{proxy.url}/", "--limit-rate", "40MB") as mount:
        fd = os.open(mount.target / "weights.bin", os.O_RDONLY)

        def read(seed: int) -> bool:
            chosen = random.Random(seed)
            for _ in range(4):
                start = chosen.randrange(len(DATA))
                size = chosen.choice((1, 4096, 100_000, MIB))
                if os.pread(fd, size, start) != DATA[start : start + size]:
                    return False
            return True

        try:
            with ThreadPoolExecutor(100) as readers:
                assert all(readers.map(read, range(100)))
        finally:
            os.close(fd)
        assert (mount.target / "weights.bin").read_bytes() == DATA


def test_a_reader_of_all_of_it_is_ready_when_the_model_is(proxy: FaultProxy, tmp_path: Path):
    with streaming(tmp_path, f"{proxy.url}/", "--limit-rate", "40MB") as mount:
        program = reading(mount.target, "print(hashlib.sha256(view('weights.bin')).hexdigest())")
        assert result(program) == sha256(DATA).hexdigest()


def test_a_read_that_gets_nothing_in_time_fails_and_says_so(proxy: FaultProxy, tmp_path: Path):
    proxy.plan = Gate()
    with streaming(tmp_path, f"{proxy.url}/", "--read-timeout", "0.3s") as mount:
        fd = os.open(mount.target / "weights.bin", os.O_RDONLY)
        try:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - by number
                os.pread(fd, 4096, 5 * CHUNK_BYTES)
        finally:
            os.close(fd)
        assert caught.value.errno in {errno.ETIMEDOUT, errno.EIO}
        assert "weights.bin" in mount.logged("timed_out")


def test_a_reader_that_waits_can_be_killed(proxy: FaultProxy, tmp_path: Path):
    proxy.plan = Gate()
    with streaming(tmp_path, f"{proxy.url}/") as mount:
        for code in ("read('weights.bin', 0, 10)", "view('weights.bin')[0]"):
            program = reading(mount.target, f"print('begun', flush=True); {code}")
            assert program.stdout is not None
            program.stdout.readline()
            program.kill()
            assert program.wait(WAIT_S) == -signal.SIGKILL
            program.communicate()


@pytest.mark.skipif(kernel() < (6, 9), reason="passthrough came with Linux 6.9")
def test_a_complete_file_needs_nobody_who_serves_it(proxy: FaultProxy, tmp_path: Path):
    with (
        streaming(tmp_path, f"{proxy.url}/") as mount,
        (mount.target / "weights.bin").open("rb") as held,  # while it is on its way
    ):
        assert held.read(10) == DATA[:10]
        inode = os.fstat(held.fileno()).st_ino
        until(lambda: _is_passed_through(mount.target, mount.process.pid), "no passthrough")
        assert (mount.target / "weights.bin").stat().st_ino == inode
        assert held.read() == DATA[10:]
        assert len(mounts_at(mount.target)) == 1, "nothing needs to cover it"


def _is_passed_through(target: Path, pid: int) -> bool:
    """Whether a file that is opened now can be read while who serves it is stopped."""
    fd = os.open(target / "weights.bin", os.O_RDONLY)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import os; print(os.pread({fd}, 10, 8_000_000).hex())"],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=2.0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        os.kill(pid, signal.SIGCONT)
        os.close(fd)
    return bytes.fromhex(done.stdout.strip()) == DATA[8_000_000:8_000_010]


def test_what_turns_out_wrong_is_not_read_any_more(
    proxy: FaultProxy, web: tuple[Nginx, Path], tmp_path: Path
):
    """The origin says another digest than its bytes have; nobody knows before the last of them."""
    digest = sha256(b"other bytes").hexdigest()
    entry = {"path": "weights.bin", "size": len(DATA), "sha256": digest}
    (web[1] / "listing.json").write_text(json.dumps({"files": [entry]}))
    gate = proxy.plan = Gate(*range(1, CHUNKS + 1))
    ref, quickly = (
        f"{proxy.url}/listing.json#index=1",
        {"MODELCACHE_TRANSFER_STALL_TIMEOUT_S": "0.5"},
    )
    with streaming(tmp_path, ref, **quickly) as mount:
        held = os.open(mount.target / "weights.bin", os.O_RDONLY)
        wait = (
            "m = view('weights.bin'); print(m[8_000_000], flush=True); input(); print(m[8_000_000])"
        )
        mapping = reading(mount.target, wait)
        try:
            assert os.pread(held, 10, 8_000_000) == DATA[8_000_000:8_000_010]
            assert mapping.stdout is not None
            assert int(mapping.stdout.readline()) == DATA[8_000_000]
            gate.chunks.add(0)
            assert "weights.bin" in mount.logged("doubted")
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(held, 10, 8_000_000)
            assert mapping.communicate("\n", timeout=WAIT_S)[0] == ""
            assert mapping.returncode == -signal.SIGBUS
            assert "does not match" in mount.logged("failed")
        finally:
            os.close(held)
            mapping.kill()
            mapping.communicate()


def test_what_another_process_brings_is_read_as_it_comes_and_taken_over_when_that_dies(
    proxy: FaultProxy, tmp_path: Path
):
    gate = proxy.plan = Gate(*range(4))
    quickly = {"MODELCACHE_TRANSFER_STALL_TIMEOUT_S": "1"}
    shell = Shell(tmp_path / "store", MODELCACHE_STORE_CHUNK_BYTES=str(CHUNK_BYTES), **quickly)
    pull = shell.start("pull", f"{proxy.url}/")
    try:
        until(lambda: chunks_kept(shell.store) == 4, "nothing comes")
        with streaming(tmp_path, f"{proxy.url}/", **quickly) as mount:
            fd = os.open(mount.target / "weights.bin", os.O_RDONLY)
            try:
                assert os.pread(fd, MIB, 3 * CHUNK_BYTES) == DATA[3 * CHUNK_BYTES :][:MIB]
                pull.kill()
                gate.chunks.update(range(CHUNKS + 1))
                assert os.pread(fd, MIB, 9 * CHUNK_BYTES) == DATA[9 * CHUNK_BYTES :][:MIB]
            finally:
                os.close(fd)
    finally:
        pull.kill()
        pull.communicate()


def test_unmounting_works_twice_and_ends_who_serves(proxy: FaultProxy, tmp_path: Path):
    proxy.plan = Gate(0)
    with streaming(tmp_path, f"{proxy.url}/") as mount:
        shell = Shell(mount.store)
        assert shell.run("unmount", mount.target).err == "unmounted\n"
        assert shell.run("unmount", mount.target).err == "nothing was mounted there\n"
        assert mount.process.wait(END_S) == 0
        assert list(mount.target.iterdir()) == []


def test_who_has_a_file_open_keeps_it_when_it_is_unmounted(proxy: FaultProxy, tmp_path: Path):
    with streaming(tmp_path, f"{proxy.url}/") as mount:
        with (mount.target / "weights.bin").open("rb") as held:
            assert Shell(mount.store).run("unmount", mount.target).code == 0
            assert held.read() == DATA
        assert mount.process.wait(END_S) == 0


def test_a_signal_ends_it_and_leaves_nothing_mounted(proxy: FaultProxy, tmp_path: Path):
    proxy.plan = Gate()
    with streaming(tmp_path, f"{proxy.url}/") as mount:
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(END_S) == 0
        assert mounts_at(mount.target) == []


def test_the_kernel_reads_so_far_ahead_and_no_farther(proxy: FaultProxy, tmp_path: Path):
    most = READAHEAD_KB << 10
    plain = {"MODELCACHE_STREAM_PASSTHROUGH": "false", "MODELCACHE_STREAM_COVER": "false"}
    with streaming(tmp_path, f"{proxy.url}/", **plain) as mount:
        setting = Path(f"/sys/class/bdi/{mounts_at(mount.target)[-1].device}/read_ahead_kb")
        if not os.access(setting, os.W_OK):
            pytest.skip(f"{setting} may not be written here")
        until(lambda: any((mount.store / "snapshots").iterdir()), "it never was complete")
        with (mount.target / "weights.bin").open("rb") as file:

            def held(start: int, end: int) -> int | None:
                return resident_bytes(file.fileno(), start, end)

            touched = 40 * MIB
            assert held(0, len(DATA)) == 0
            said = result(reading(mount.target, f"print(view('weights.bin')[{touched}])"))
            assert int(said) == DATA[touched]
            until(lambda: held(0, len(DATA)) == most, "a fault brings as much as is read ahead")

            read = 4 * MIB
            code = f"""
fd = os.open({str(mount.target / "weights.bin")!r}, os.O_RDONLY)
for at in range(0, {read}, 1 << 17):
    assert len(os.pread(fd, 1 << 17, at)) == 1 << 17
"""
            assert not result(reading(mount.target, code))
            until(lambda: (held(read, touched - most) or 0) > MIB, "several requests at once")
            assert (held(read, touched - most) or 0) <= 2 * most  # a window, and the next one


def test_a_model_that_is_warm_is_a_plain_bind_mount(proxy: FaultProxy, tmp_path: Path):
    shell = Shell(tmp_path / "store")
    path = Path(shell.run("pull", f"{proxy.url}/").out.strip())
    target = tmp_path / "mnt"
    try:
        done = shell.run("mount", f"{proxy.url}/", target, "--stream", "--json")
        assert done.json["mode"] == "full"
        weights = (target / "weights.bin").stat()
        assert weights.st_ino == (path / "weights.bin").stat().st_ino
        removing = shell.run("rm", f"{proxy.url}/")
        assert (removing.code, "is protected" in removing.complaint) == (1, True)
    finally:
        assert shell.run("unmount", target).code == 0
    assert shell.run("rm", f"{proxy.url}/").code == 0


def test_it_is_served_in_the_background_unless_told_otherwise(proxy: FaultProxy, tmp_path: Path):
    shell = Shell(tmp_path / "store")
    target = tmp_path / "mnt"
    try:
        done = shell.run("mount", f"{proxy.url}/", target, "--stream")
        assert (done.code, done.out, done.err) == (0, f"{target}\n", "")
        assert (target / "weights.bin").read_bytes() == DATA
    finally:
        assert shell.run("unmount", target).code == 0


@pytest.mark.parametrize("background", [True, False])
def test_what_cannot_be_mounted_is_told_in_one_line(
    proxy: FaultProxy, tmp_path: Path, background: bool
):
    shell = Shell(tmp_path / "store")
    more = [] if background else ["--foreground"]
    done = shell.run("mount", f"{proxy.url}/missing/", tmp_path / "mnt", "--stream", *more)
    assert done.code == 1
    assert "missing" in done.complaint
    (tmp_path / "file").write_bytes(b"")
    done = shell.run("mount", f"{proxy.url}/", tmp_path / "file", "--stream", *more)
    assert done.code == 1
    assert "cannot make the folder" in done.complaint
    done = shell.run("mount", f"{proxy.url}/", tmp_path / "mnt", "--foreground")
    assert done.code == 2
