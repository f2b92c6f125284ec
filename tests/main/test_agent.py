"""The agent as a process: it is killed, stopped, restarted and asked as on a node."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest

from modelcache.client import AgentClient
from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import ModelPhase
from modelcache.errors import ModelcacheError
from tests.agent.support import tree
from tests.main.conftest import FILES, MIB
from tests.main.support import WAIT_S, Shell, chunks_kept, finish, wait_until
from tests.servers.faults import FaultProxy, held_from

CHUNK_BYTES = 2 * MIB
WEIGHTS = sum(len(data) for data in FILES.values())


class Agent:
    """One process of `modelcache agent`, and its client."""

    def __init__(self, shell: Shell, folder: Path, *options: str, **env: str) -> None:
        self.socket = folder / "agent.sock"
        self.process = shell.start(
            *("agent", "--socket", str(self.socket), "--listen", "127.0.0.1:0", "--node", "node-1"),
            *options,
            **env,
        )
        self.client = AgentClient(str(self.socket))

    def ready(self) -> bool:
        try:
            return self.client.node().ready
        except ModelcacheError:
            assert self.process.poll() is None, self.process.communicate()
            return False

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def agent(shell: Shell, folder: Path, *options: str, **env: str) -> Iterator[Agent]:
    """A running agent, ready, on `folder/agent.sock`."""
    running = Agent(shell, folder, *options, **env)
    try:
        # Asked before it listens the socket's file is not there, or nobody is behind it yet.
        wait_until(running.socket.exists)
        wait_until(running.ready)
        yield running
    finally:
        running.end()


def lines(err: str) -> list[dict]:
    return [json.loads(line) for line in err.splitlines()]


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_killed_agent_goes_on_where_it_was_and_finishes(
    shell: Shell, origin: FaultProxy, tmp_path: Path
):
    origin.plan = held_from(2 * CHUNK_BYTES)
    ref = parse_ref(f"{origin.url}/")
    with agent(shell, tmp_path) as first:
        first.client.want(ref, priority=60, lease="pod/a", note="why")
        wait_until(lambda: chunks_kept(shell.store) == 4)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(WAIT_S)
    assert first.socket.exists()  # nobody could remove it
    origin.plan = lambda _: None
    before = origin.body_bytes
    with agent(shell, tmp_path) as second:
        status = second.client.wait(ref, WAIT_S)
        assert status.phase is ModelPhase.WARM
        assert [(w.holder, w.priority, w.note) for w in status.wants] == [("pod/a", 60, "why")]
        assert tree(Path(status.path)) == FILES
    # All that was journalled was kept: no more than the rest came again, and the indexes.
    assert origin.body_bytes - before < WEIGHTS - 4 * CHUNK_BYTES + 10_000


def test_an_agent_killed_over_and_over_ends_up_with_the_model(
    shell: Shell, origin: FaultProxy, tmp_path: Path
):
    ref = parse_ref(f"{origin.url}/")
    for start in (0, CHUNK_BYTES, 2 * CHUNK_BYTES):
        origin.plan = held_from(start)
        held = len(origin.gets(".safetensors"))
        with agent(shell, tmp_path) as running:
            running.client.want(ref)
            wait_until(lambda held=held: len(origin.gets(".safetensors")) > held)
            running.process.send_signal(signal.SIGKILL)
            running.process.wait(WAIT_S)
    origin.plan = lambda _: None
    with agent(shell, tmp_path) as last:
        assert tree(Path(last.client.wait(ref, WAIT_S).path)) == FILES
    assert [found["bad_chunks"] for found in shell.call("verify", "--json").json] == [{}]


def test_sigterm_ends_in_order_and_the_next_start_goes_on(
    shell: Shell, origin: FaultProxy, tmp_path: Path
):
    origin.plan = held_from(2 * CHUNK_BYTES)
    ref = parse_ref(f"{origin.url}/")
    with agent(shell, tmp_path) as first:
        first.client.want(ref)
        wait_until(lambda: chunks_kept(shell.store) == 4)
        first.process.send_signal(signal.SIGTERM)
        done = finish(first.process)
    assert (done.code, done.out) == (0, "")
    assert not first.socket.exists()
    told = [line["event"] for line in lines(done.err)]
    assert told[0] == "agent_ready"
    assert told[-4:] == ["agent_stopping", "draining", "agent_drained", "agent_stopped"]
    assert chunks_kept(shell.store) == 4
    origin.plan = lambda _: None
    with agent(shell, tmp_path) as second:
        assert second.client.wait(ref, WAIT_S).phase is ModelPhase.WARM


def test_a_second_signal_ends_it_at_once(shell: Shell, origin: FaultProxy, tmp_path: Path):
    origin.plan = held_from(0)
    with agent(shell, tmp_path) as running:
        running.client.want(parse_ref(f"{origin.url}/"))
        wait_until(lambda: origin.gets(".safetensors"))
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        started_s = monotonic()
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            assert monotonic() - started_s < WAIT_S
            with suppress(subprocess.TimeoutExpired):  # without a breath it would do nothing else
                running.process.wait(0.02)
        assert running.process.returncode in {0, -signal.SIGTERM, -signal.SIGINT}


def test_an_open_event_stream_does_not_keep_it(shell: Shell, tmp_path: Path):
    with agent(shell, tmp_path) as running:
        events = shell.start("events", "--agent", str(running.socket), "--history")
        running.client.want(parse_ref("file:///nonexistent"))
        assert events.stdout is not None
        assert " queued " in events.stdout.readline()
        running.process.send_signal(signal.SIGTERM)
        assert finish(running.process).code == 0
        assert finish(events).code == 0


def test_two_agents_do_not_share_a_socket(shell: Shell, tmp_path: Path):
    with agent(shell, tmp_path) as running:
        second = shell.run("agent", "--socket", running.socket, "--listen", "127.0.0.1:0")
        assert second.code == 2
        assert second.complaint.startswith("another agent answers on")
        assert running.client.node().ready


def test_the_log_is_lines_of_json_or_for_people(shell: Shell, model: Path, tmp_path: Path):
    with agent(shell, tmp_path) as running:
        running.client.want(parse_ref(f"file://{model}"))
        running.client.wait(parse_ref(f"file://{model}"), WAIT_S)
        running.process.send_signal(signal.SIGTERM)
        logged = lines(finish(running.process).err)
    assert {"agent_ready", "model_queued", "model_started", "model_resolved", "model_warm"} <= {
        line["event"] for line in logged
    }
    assert all({"level", "timestamp"} <= set(line) for line in logged)
    with agent(shell, tmp_path, "--log-format", "console", "--log-level", "warning") as running:
        running.process.send_signal(signal.SIGTERM)
        assert finish(running.process).err == ""


def test_systemd_is_told_when_it_is_ready_that_it_lives_and_when_it_ends(
    shell: Shell, tmp_path: Path
):
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(WAIT_S)
        told = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        with agent(shell, tmp_path, **told) as running:
            first = manager.recv(4096).decode()
            assert first.splitlines() == ["READY=1", "STATUS=ready, 0 models wanted"]
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            running.process.send_signal(signal.SIGTERM)
            words = {manager.recv(4096)}
            while b"STOPPING=1" not in words:
                words.add(manager.recv(4096))
            assert finish(running.process).code == 0


def test_check_config_prints_what_would_hold_and_where_it_would_listen(
    shell: Shell, tmp_path: Path
):
    config = tmp_path / "config.toml"
    config.write_text(
        '[http]\nheaders = ["Authorization: Bearer hunter2"]\n'
        '[agent]\nnode = "n"\npriority_limits = ["30: 200MB"]\n'
        '[mirrors]\nrewrite = ["hf:// => https://m.example/x?sig=hunter2"]\n'
    )
    done = shell.call("agent", "--check-config", "--config", config, "--listen", "[::]:1234")
    assert (done.code, done.err) == (0, "")
    assert "hunter2" not in done.out
    assert "# listens on tcp:[::]:1234 (API, reading only; metrics, probes)" in done.out
    assert 'listen = "[::]:1234"' in done.out
    assert 'priority_limits = ["30: 200MB"]' in done.out
    assert not shell.store.exists()
    again = tmp_path / "again.toml"
    again.write_text(done.out)
    printed = shell.call("agent", "--check-config", "--config", again, "--json")
    assert printed.code == 0, printed.err
    assert printed.json["settings"]["agent"]["node"] == "n"


def test_check_config_tells_all_that_is_wrong(shell: Shell, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(
        '[agent]\nlisten = "nowhere"\npulls_max = 0\ntypo = 1\npriority_limits = ["x"]\n'
        '[transfer]\nio = "fast"\n'
    )
    done = shell.call("agent", "--check-config", "--config", config, "--node", "a b")
    assert done.code == 2
    assert done.out == ""
    complaints = "\n".join(done.err.splitlines())
    for part in ("agent.listen", "agent.pulls_max", "'typo'", "agent.priority_limits", "'fast'"):
        assert part in complaints, part
    assert all(line.startswith("modelcache: ") for line in done.err.splitlines())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"MODELCACHE_AGENT_NODE": "a b"}, "agent.node"),
        ({"MODELCACHE_AGENT_TCP_TOKEN_FILE": "/nonexistent/token"}, "agent.tcp_token_file"),
    ],
    ids=["node", "token"],
)
def test_what_only_shows_when_it_is_opened_is_checked_too(
    shell: Shell, setting: dict[str, str], complaint: str
):
    done = shell.call("agent", "--check-config", **setting)
    assert done.code == 2
    assert complaint in done.complaint


def test_a_store_of_a_newer_version_is_refused_at_the_start(shell: Shell, tmp_path: Path):
    shell.store.mkdir()
    (shell.store / "store.json").write_text('{"format": 99}')
    done = shell.run("agent", "--socket", tmp_path / "a.sock", "--listen", "")
    assert done.code == 1
    assert "use a newer modelcache" in done.complaint
    assert not (tmp_path / "a.sock").exists()


def test_a_small_install_is_told_what_it_lacks(shell: Shell, tmp_path: Path):
    # As if the extra were not there: a module of that name that cannot be imported.
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")
    done = subprocess.run(
        [sys.executable, "-m", "modelcache.main", "agent"],
        env=shell.environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 2
    assert "install modelcache[agent]" in done.stderr
