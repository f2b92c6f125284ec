"""Stopping a pull keeps what arrived; two that want the same share one download."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from time import monotonic

import pytest

from tests.agent.support import tree
from tests.main.conftest import FILES, MIB
from tests.main.support import WAIT_S, Shell, chunks_kept, finish, wait_until
from tests.servers.faults import Fault, FaultProxy, held_from

WEIGHTS = sum(len(data) for data in FILES.values())
CHUNK_BYTES = 2 * MIB


def slowly(proxy: FaultProxy, bytes_s: float) -> None:
    proxy.plan = lambda request: Fault(bytes_s=bytes_s) if request.method == "GET" else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_pull_says_what_is_kept_and_the_next_one_fetches_the_rest(
    shell: Shell, origin: FaultProxy, number: signal.Signals
):
    origin.plan = held_from(2 * CHUNK_BYTES)
    pulling = shell.start("pull", f"{origin.url}/", "--connections", "4")
    wait_until(lambda: chunks_kept(shell.store) == 4)
    pulling.send_signal(number)
    done = finish(pulling)
    assert (done.code, done.out) == (130, "")
    assert done.complaint.startswith("stopped; about ")
    assert done.complaint.endswith("are kept, the same command goes on from there")
    origin.plan = lambda _: None
    before = origin.body_bytes
    again = shell.call("pull", f"{origin.url}/", "--json")
    assert again.code == 0, again.err
    assert tree(Path(again.json["path"])) == FILES
    assert again.json["fetched_bytes"] <= WEIGHTS - CHUNK_BYTES
    assert origin.body_bytes - before < WEIGHTS - CHUNK_BYTES + 10_000  # and the indexes


def test_a_stopped_json_pull_is_a_json_error(shell: Shell, origin: FaultProxy):
    origin.plan = held_from(CHUNK_BYTES)
    pulling = shell.start("pull", f"{origin.url}/", "--json")
    wait_until(lambda: origin.body_bytes > CHUNK_BYTES // 2)
    pulling.send_signal(signal.SIGINT)
    done = finish(pulling)
    assert (done.code, done.err) == (130, "")
    assert done.json["error"]["code"] == "cancelled"


def test_a_pull_can_be_stopped_while_its_origin_does_not_answer(shell: Shell, origin: FaultProxy):
    origin.plan = lambda request: (
        Fault(stall_at=0) if request.path.endswith(".safetensors") else None
    )
    pulling = shell.start("pull", f"{origin.url}/")
    wait_until(lambda: origin.gets(".safetensors"))
    pulling.send_signal(signal.SIGTERM)
    done = finish(pulling)
    assert done.code == 130
    assert done.complaint.startswith("stopped")


def test_an_origin_that_does_not_even_list_is_left_at_once(shell: Shell):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_S)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/m/"
        pulling = shell.start("pull", url, "--json")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)  # it has asked
            asked_s = monotonic()
            pulling.send_signal(signal.SIGINT)
            done = finish(pulling)
    assert (done.code, done.err) == (130, ""), done.out
    assert done.json["error"]["message"] == "stopped before anything was fetched"
    assert monotonic() - asked_s < 5.0  # timeouts are longer than that


def test_a_second_signal_ends_the_process_at_once(shell: Shell, origin: FaultProxy):
    origin.plan = held_from(0)
    pulling = shell.start("pull", f"{origin.url}/")
    wait_until(lambda: origin.gets(".safetensors"))
    pulling.send_signal(signal.SIGINT)
    pulling.send_signal(signal.SIGTERM)
    pulling.send_signal(signal.SIGTERM)
    assert finish(pulling).code in {130, -signal.SIGTERM}


@pytest.mark.slow
def test_two_pulls_at_once_share_one_download(shell: Shell, origin: FaultProxy):
    slowly(origin, bytes_s=6e6)
    pulls = [shell.start("pull", f"{origin.url}/", "--json") for _ in range(2)]
    done = [finish(each) for each in pulls]
    assert [each.code for each in done] == [0, 0], [each.err + each.out for each in done]
    paths = {each.json["path"] for each in done}
    assert len(paths) == 1
    assert tree(Path(paths.pop())) == FILES
    asked = [request.span for request in origin.gets(".safetensors") if request.span]
    assert sum(end - start for start, end in asked) <= WEIGHTS + CHUNK_BYTES  # one hedge at most


@pytest.mark.slow
def test_a_pull_takes_over_from_one_that_dies(shell: Shell, origin: FaultProxy):
    slowly(origin, bytes_s=1e6)
    first = shell.start("pull", f"{origin.url}/")
    wait_until(lambda: origin.body_bytes > CHUNK_BYTES // 2)
    second = shell.start("pull", f"{origin.url}/", "--json")
    wait_until(lambda: len([r for r in origin.requests if r.path == "/"]) >= 2)
    origin.plan = lambda _: None
    first.kill()
    finish(first)
    done = finish(second)
    assert done.code == 0, done.err
    assert tree(Path(done.json["path"])) == FILES
