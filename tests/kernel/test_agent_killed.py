"""Agents that are killed under their readers: who waits goes on, or gets a clean error."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.agent.events import EventKind
from modelcache.domain.refs import parse_ref
from modelcache.domain.volumes import MountMode, VolumeRequest
from modelcache.errors import NotWarmYet
from modelcache.mounts import mounts_at, mounts_below
from tests.agent.support import random_bytes
from tests.kernel.streams import WAIT_S, covered, kernel, needs_fuse, reading, result, until
from tests.main.support import Shell, chunks_kept
from tests.main.test_agent import Agent, agent
from tests.servers.faults import FaultProxy, Waiting, held_from
from tests.servers.nginx import Nginx

pytestmark = [
    pytest.mark.timeout(240),  # several agents, one after the other
    pytest.mark.slow,
    pytest.mark.kernel,
    needs_fuse,
    pytest.mark.skipif(kernel() < (6, 9), reason="requests are asked again from Linux 6.9 on"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHUNK_BYTES = 2 << 20
CHUNKS = 24
DATA = random_bytes(CHUNKS * CHUNK_BYTES + 777)
READ_TIMEOUT_S = 20
HOLD_S = 30.0
KILLS = 3
READERS = 100

# A hundred threads that read here and there until they are told to stop; what they saw, as JSON.
READING = f"""
import json, threading, time
whole = open(sys.argv[1], "rb").read()
fd = os.open(target + "/weights.bin", os.O_RDONLY)
stopped = threading.Event()
wrong, errors, longest, reads = [], [], [0.0], [0]
def work(seed):
    chosen = random.Random(seed)
    while not stopped.is_set():
        start, size = chosen.randrange(len(whole)), chosen.choice((1, 4096, 300_000))
        began = time.monotonic()
        try:
            if os.pread(fd, size, start) != whole[start : start + size]:
                wrong.append((start, size))
        except OSError as error:
            errors.append(error.errno)
            if len(errors) > 1000:
                return
        longest[0] = max(longest[0], time.monotonic() - began)
        reads[0] += 1
threads = [threading.Thread(target=work, args=(seed,)) for seed in range({READERS})]
[thread.start() for thread in threads]
print("begun", flush=True)
sys.stdin.readline()
stopped.set()
[thread.join() for thread in threads]
print(json.dumps(dict(wrong=wrong, errors=errors, longest=longest[0], reads=reads[0])))
"""


@pytest.fixture
def proxy(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    server, root = web
    (root / "m").mkdir()
    (root / "m" / "weights.bin").write_bytes(DATA)
    with FaultProxy(server.url) as running:
        yield running


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "store", MODELCACHE_STORE_CHUNK_BYTES=str(CHUNK_BYTES))


@contextmanager
def streaming_agent(
    shell: Shell,
    tmp_path: Path,
    *,
    hold_s: float = HOLD_S,
    rate: str = "0",
    passthrough: bool = True,
) -> Iterator[Agent]:
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
[agent]
volume_roots = ["{tmp_path}/targets"]
[transfer]
bandwidth_limit_bytes_s = "{rate}"
stall_timeout_s = 20
[stream]
read_timeout_s = {READ_TIMEOUT_S}
hold_s = {hold_s}
passthrough = {str(passthrough).lower()}
"""
    )
    with agent(shell, tmp_path, "--config", str(config)) as running:
        yield running


def kill(running: Agent) -> None:
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(WAIT_S)


def published(running: Agent, target: Path, ref: str) -> None:
    request = VolumeRequest("v1", str(target), parse_ref(ref), mode=MountMode.STREAM)

    def publish() -> bool:
        try:
            return running.client.publish(request).mode is MountMode.STREAM
        except NotWarmYet:
            return False

    until(publish, "not published")


def told(running: Agent, kind: EventKind) -> dict[str, object]:
    """The first event of a kind."""
    for event in running.client.events(history=True):
        if event.kind == kind:
            return event.data
    raise AssertionError(f"no {kind}")


def program(target: Path, whole: Path):
    return reading(target, f"target = {str(target)!r}; sys.argv = ['', {str(whole)!r}]\n{READING}")


def more_comes(shell: Shell) -> None:
    kept = chunks_kept(shell.store)
    until(lambda: chunks_kept(shell.store) > kept, "nothing comes")


def test_no_kill_of_the_agent_shows_a_hundred_readers_a_wrong_byte_or_an_error(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path, web: tuple[Nginx, Path]
):
    target, ref = root / "v1", f"{proxy.url}/m/"
    with streaming_agent(shell, tmp_path, rate="4MB") as running:
        published(running, target, ref)
        readers = program(target, web[1] / "m" / "weights.bin")
        assert readers.stdout is not None
        assert readers.stdout.readline() == "begun\n"
        more_comes(shell)
        kill(running)
    try:
        for _ in range(KILLS - 1):
            with streaming_agent(shell, tmp_path, rate="4MB") as running:
                told(running, EventKind.STREAM_TAKEN_OVER)
                more_comes(shell)
                kill(running)
        with streaming_agent(shell, tmp_path) as running:
            told(running, EventKind.STREAM_TAKEN_OVER)
            running.client.wait(parse_ref(ref), WAIT_S)
            said, _ = readers.communicate("\n", timeout=WAIT_S)
            assert running.client.unpublish("v1", str(target))
    finally:
        readers.kill()
        readers.communicate()
    seen = json.loads(said)
    assert seen["wrong"] == []
    assert seen["errors"] == []
    assert seen["longest"] < HOLD_S + READ_TIMEOUT_S
    assert seen["reads"] > READERS


def test_without_another_agent_who_waits_gets_an_error_in_time(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path
):
    proxy.plan = held_from(4 * CHUNK_BYTES)
    target = root / "v1"
    with streaming_agent(shell, tmp_path, hold_s=0.5) as running:
        published(running, target, f"{proxy.url}/m/")
        waits = f"print(len(read('weights.bin', {10 * CHUNK_BYTES}, 10)))"
        waiting = reading(target, f"print('begun', flush=True); {waits}")
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "begun\n"
        kill(running)
    said = result(waiting)
    assert "Error" in said
    assert any(os.strerror(number) in said for number in (errno.ENOTCONN, errno.ECONNABORTED))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_the_kernel_reads_itself_goes_on_with_the_next_agent(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path, number: signal.Signals
):
    """A file that is complete and open by passthrough, one that was opened before, and new ones."""
    proxy.plan = held_from(20 * CHUNK_BYTES)
    target, ref = root / "v1", f"{proxy.url}/m/"
    with streaming_agent(shell, tmp_path) as running:
        published(running, target, ref)
        early = os.open(target / "weights.bin", os.O_RDONLY)
        assert os.pread(early, 10, 0) == DATA[:10]
        running.process.send_signal(number)
        running.process.wait(WAIT_S)
    proxy.plan = lambda _: None
    opened = [early]
    try:
        for _ in range(2):
            with streaming_agent(shell, tmp_path) as running:
                told(running, EventKind.STREAM_TAKEN_OVER)
                running.client.wait(parse_ref(ref), WAIT_S)
                assert (target / "weights.bin").read_bytes() == DATA
                opened.append(os.open(target / "weights.bin", os.O_RDONLY))
                for each in opened:
                    assert os.pread(each, 1000, 9 * CHUNK_BYTES) == DATA[9 * CHUNK_BYTES :][:1000]
                running.process.send_signal(number)
                running.process.wait(WAIT_S)
        with streaming_agent(shell, tmp_path) as running:
            for each in opened:
                os.close(each)
            opened.clear()
            assert running.client.unpublish("v1", str(target))
            assert not running.client.unpublish("v1", str(target))
            until(lambda: not list((shell.store / "streams").iterdir()), "something is left")
    finally:
        for each in opened:
            os.close(each)


def test_a_command_has_the_agent_mount_and_unmount(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path
):
    proxy.plan = held_from(20 * CHUNK_BYTES)
    target = root / "mine"
    with streaming_agent(shell, tmp_path) as running:
        where = ("--agent", str(running.socket))
        done = shell.run("mount", f"{proxy.url}/m/", target, "--stream", "--json", *where)
        assert done.json["mode"] == "stream"
        assert [volume.target for volume in running.client.volumes()] == [str(target)]
        assert shell.run("unmount", target, *where).err == "unmounted\n"
        assert shell.run("unmount", target, *where).err == "nothing was mounted there\n"
        assert running.client.volumes() == []
        outside = shell.run("mount", f"{proxy.url}/m/", tmp_path / "else", "--stream", *where)
        assert outside.code == 1
        assert "volumes may be published below" in outside.complaint
    assert mounts_at(target) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_model_that_covers_its_stream_needs_no_agent_and_is_taken_over_once(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path, number: signal.Signals
):
    rest = proxy.plan = Waiting(20 * CHUNK_BYTES)
    target = root / "v1"
    with streaming_agent(shell, tmp_path, passthrough=False) as running:
        published(running, target, f"{proxy.url}/m/")
        early = os.open(target / "weights.bin", os.O_RDONLY)
        assert os.pread(early, 10, 0) == DATA[:10]
        rest.release()
        ids = covered(target)
        running.process.send_signal(number)
        running.process.wait(WAIT_S)
    try:
        assert (target / "weights.bin").read_bytes() == DATA, "while there is no agent"
        with streaming_agent(shell, tmp_path, passthrough=False) as running:
            told(running, EventKind.STREAM_TAKEN_OVER)
            assert os.pread(early, 1000, 9 * CHUNK_BYTES) == DATA[9 * CHUNK_BYTES :][:1000]
            assert (target / "weights.bin").read_bytes() == DATA
            assert covered(target) == ids
            assert running.client.unpublish("v1", str(target))
            assert mounts_below(root) == []
            assert os.pread(early, 1000, 11 * CHUNK_BYTES) == DATA[11 * CHUNK_BYTES :][:1000]
    finally:
        os.close(early)


def test_a_model_that_covers_its_stream_outlives_whoever_has_held_that(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path
):
    """No agent comes in time: what was open through the stream ends, and nothing else."""
    rest = proxy.plan = Waiting(20 * CHUNK_BYTES)
    target = root / "v1"
    with streaming_agent(shell, tmp_path, hold_s=0.5, passthrough=False) as running:
        published(running, target, f"{proxy.url}/m/")
        early = os.open(target / "weights.bin", os.O_RDONLY)
        rest.release()
        ids = covered(target)
        kill(running)
    try:
        until(lambda: _is_dead(early), "somebody still holds it")
        assert (target / "weights.bin").read_bytes() == DATA
        with streaming_agent(shell, tmp_path, passthrough=False) as running:
            assert [volume.volume_id for volume in running.client.volumes()] == ["v1"]
            assert covered(target) == ids
            assert (target / "weights.bin").read_bytes() == DATA
            assert running.client.unpublish("v1", str(target))
            assert mounts_below(root) == []
    finally:
        os.close(early)


def test_where_a_kernel_does_not_ask_again_who_had_files_open_gets_an_error(
    shell: Shell, proxy: FaultProxy, root: Path, tmp_path: Path
):
    """As before Linux 6.9: the mount is made anew, and nobody holds the old one any longer."""
    proxy.plan = held_from(20 * CHUNK_BYTES)
    target = root / "v1"
    with streaming_agent(shell, tmp_path) as running:
        published(running, target, f"{proxy.url}/m/")
        early = os.open(target / "weights.bin", os.O_RDONLY)
        kill(running)
    (saved,) = (shell.store / "streams").glob("*.json")
    plain = json.loads(saved.read_text())
    plain["state"]["session"]["resend"] = False
    saved.write_text(json.dumps(plain))
    try:
        with streaming_agent(shell, tmp_path) as running:
            told(running, EventKind.STREAM_REMOUNTED)
            until(lambda: _is_dead(early), "somebody still holds it")
            with (target / "weights.bin").open("rb") as file:
                assert file.read(10) == DATA[:10]
            assert running.client.unpublish("v1", str(target))
    finally:
        os.close(early)


def _is_dead(fd: int) -> bool:
    """Whether nobody answers for a file of a stream, nor ever will."""
    try:
        os.fstat(fd)
        os.pread(fd, 1, len(DATA) - 1)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False
