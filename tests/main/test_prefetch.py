"""Commands that ask an agent, against a real one over its real socket."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import LEASE_DEFAULT
from modelcache.main import wanting
from tests.agent.nodes import node_settings
from tests.agent.support import tree
from tests.faces.http.agents import WAIT_S, Running, running_faces
from tests.main.conftest import FILES, MIB
from tests.main.support import Shell, finish
from tests.servers.faults import Fault, FaultProxy, held_from


@pytest.fixture
def faces(tmp_path: Path) -> Iterator[Running]:
    """An agent in this process: what it does is looked at, what asks it is a process of its own."""
    chosen = node_settings(
        tmp_path / "store",
        node="node-1",
        socket=tmp_path / "agent.sock",
        listen="127.0.0.1:0",
    )
    with running_faces(chosen) as running:
        yield running


@pytest.fixture
def asking(shell: Shell, faces: Running) -> Shell:
    """Commands that find this agent."""
    shell.env["MODELCACHE_AGENT"] = str(faces.socket)
    return shell


def test_prefetch_returns_at_once_and_the_agent_brings_the_model(
    asking: Shell, faces: Running, origin: FaultProxy
):
    origin.plan = held_from(0)
    done = asking.call("prefetch", f"{origin.url}/", "--priority", "scheduled", "--lease", "pod/a")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(("queued ", "resolving ", "fetching "))
    (wanted,) = faces.daemon.node.statuses()
    assert (wanted.priority, wanted.wants[0].holder) == (60, "pod/a")


def test_prefetch_wait_prints_where_the_model_is(asking: Shell, origin: FaultProxy):
    done = asking.run("prefetch", f"{origin.url}/", "--wait")
    assert done.code == 0, done.err
    assert tree(Path(done.out.strip())) == FILES
    assert done.err.splitlines()[-1] == f"warm {origin.url}/"
    again = asking.call("prefetch", f"{origin.url}/", "--wait", "--json")
    assert again.err == ""
    assert again.json["phase"] == "warm"
    assert again.json["path"] == done.out.strip()


def test_prefetch_takes_globs_like_pull(asking: Shell, origin: FaultProxy):
    done = asking.run("prefetch", f"{origin.url}/", "--include", "*.json", "*.txt", "--wait", "-q")
    assert (done.code, done.err) == (0, "")
    assert sorted(tree(Path(done.out.strip()))) == ["config.json", "sub/vocab.txt"]


def test_what_its_origin_refuses_is_that_error_and_its_exit_code(asking: Shell, origin: FaultProxy):
    origin.plan = lambda _: Fault(status=403, body=b"")
    done = asking.run("prefetch", f"{origin.url}/", "--wait")
    assert (done.code, done.out) == (1, "")
    assert "403" in done.complaint
    told = asking.call("prefetch", f"{origin.url}/", "--wait", "--json")
    assert told.code == 1
    assert told.json["error"]["code"] == "forbidden"


def test_waiting_ends_with_the_timeout_and_the_agent_goes_on(
    asking: Shell, faces: Running, origin: FaultProxy
):
    origin.plan = held_from(0)
    done = asking.call("prefetch", f"{origin.url}/", "--wait", "--timeout", "300ms")
    assert done.code == 1
    assert done.complaint.startswith("not warm in time, and the agent goes on: ")
    assert len(faces.daemon.node.statuses()) == 1


def test_who_stops_waiting_stops_nothing(asking: Shell, faces: Running, origin: FaultProxy):
    origin.plan = held_from(2 * MIB)
    ref = parse_ref(f"{origin.url}/")
    waiting = asking.start("prefetch", f"{origin.url}/", "--wait")
    assert waiting.stderr is not None
    while not waiting.stderr.readline().startswith("fetching "):
        pass
    waiting.send_signal(signal.SIGINT)
    done = finish(waiting)
    assert (done.code, done.out) == (130, "")
    assert done.complaint.startswith("stopped waiting; the agent goes on with ")
    origin.plan = lambda _: None
    assert faces.daemon.node.wait(ref, WAIT_S).path


def test_release_ends_one_want_or_all(asking: Shell, faces: Running, model: Path):
    ref = f"file://{model}"
    for lease in ("a", "b", "user"):
        assert asking.call("prefetch", ref, "--lease", lease).code == 0
    assert asking.call("release", ref).err == "released\n"
    assert asking.call("release", ref).err == "was not wanted\n"
    assert asking.call("release", ref, "--lease", "a", "--json").json == {"released": True}
    assert asking.call("release", ref, "--all", "-q").code == 0
    assert faces.daemon.node.statuses() == []


def test_status_shows_the_agent_and_its_models(asking: Shell, model: Path):
    ref = f"file://{model}"
    assert asking.call("status").out.splitlines()[-1] == "nothing is wanted here"
    asking.call("prefetch", ref, "--wait", "--lease", "pod/a")
    told = asking.call("status").out
    assert told.startswith("node node-1, modelcache ")
    assert "pod/a" in told
    assert "100 %" in told
    assert asking.call("status", "-q").out == f"warm {ref}\n"
    assert asking.call("status", ref).out == f"warm {ref}\n"
    assert asking.call("status", ref, "-q").out == "warm\n"
    assert asking.call("status", ref, "--json").json["phase"] == "warm"
    assert asking.call("status", "--json").json["wanted"][0]["ref"] == ref
    unknown = asking.call("status", "s3://bucket/m")
    assert (unknown.code, unknown.complaint) == (
        1,
        "that is not wanted on this node; ask for it with prefetch",
    )


def test_status_tells_why_a_model_does_not_come(asking: Shell, origin: FaultProxy):
    origin.plan = lambda _: Fault(status=403, body=b"")
    asking.call("prefetch", f"{origin.url}/", "--wait")
    told = asking.call("status").out
    assert "failed" in told
    assert "403" in told.splitlines()[-1]
    assert "(again in " in told.splitlines()[-1]


def test_watching_a_status_is_a_line_of_json_a_second(asking: Shell, model: Path):
    asking.call("prefetch", f"file://{model}", "--wait")
    watching = asking.start("status", "--watch", "--json")
    assert watching.stdout is not None
    read = [json.loads(watching.stdout.readline()) for _ in range(2)]
    watching.send_signal(signal.SIGINT)
    assert finish(watching).code == 130
    assert [status["wanted"][0]["phase"] for status in read] == ["warm", "warm"]


def test_events_are_lines(asking: Shell, model: Path):
    asking.call("prefetch", f"file://{model}", "--wait")
    following = asking.start("events", "--history", "--json")
    assert following.stdout is not None
    kinds = []
    while "warm" not in kinds:
        kinds.append(json.loads(following.stdout.readline())["kind"])
    assert kinds[0] == "queued"
    following.send_signal(signal.SIGINT)
    assert finish(following).code == 130


def test_drain_is_waited_for(asking: Shell, faces: Running):
    assert asking.call("drain", "--timeout", "5s").err == "drained\n"
    assert faces.daemon.node.draining
    refused = asking.call("prefetch", "s3://bucket/m")
    assert refused.complaint == "node node-1 is draining and takes nothing new"
    assert asking.call("drain", "--json").json == {"draining": True, "complete": True}
    assert asking.call("resume").err == "resumed\n"
    assert not faces.daemon.node.draining
    assert asking.call("resume").err == "it was not draining\n"
    assert asking.call("resume", "--json").json == {"draining": False, "resumed": False}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--priority", "101"], "priority: "),
        (["--priority", "urgent"], "'urgent' is no number from 0 to 100 and none of speculative"),
        (["--lease", "two words"], "is not a name"),
        (["--timeout", "5s"], "give --wait too"),
        (["--ttl", "soon"], "'soon' is not a duration"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_said(asking: Shell, options: list[str], complaint: str):
    done = asking.call("prefetch", "s3://bucket/m", *options)
    assert done.code == 2
    assert complaint in done.complaint


def test_without_an_agent_it_says_how_to_get_one(shell: Shell, tmp_path: Path):
    for command in (
        ["prefetch", "s3://bucket/m"],
        ["status"],
        ["release", "s3://bucket/m"],
        ["drain"],
        ["resume"],
    ):
        done = shell.call(*command, MODELCACHE_AGENT_SOCKET=str(tmp_path / "none.sock"))
        assert done.code == 1
        assert done.complaint.startswith(f"no agent listens on {tmp_path}/none.sock; start one")


def test_the_configured_socket_is_the_one_that_is_asked(shell: Shell, faces: Running):
    done = shell.call("status", "--json", MODELCACHE_AGENT_SOCKET=str(faces.socket))
    assert done.json["node"] == "node-1"
    over_tcp = shell.call("status", "--json", "--agent", faces.url)
    assert over_tcp.json["node"] == "node-1"
    refused = shell.call("drain", "--agent", faces.url)
    assert (refused.code, "Unix socket only" in refused.complaint) == (1, True)


@pytest.mark.parametrize(
    "command", ["agent", "prefetch", "status", "release", "events", "drain", "resume"]
)
def test_every_command_has_help_and_json(shell: Shell, command: str):
    done = shell.call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: modelcache")
    assert "--json" in done.out


def test_a_want_without_a_name_has_the_one_that_the_api_gives_it():
    assert wanting.LEASE == LEASE_DEFAULT


def test_estimate_says_when_a_model_would_be_ready(asking: Shell, origin: FaultProxy):
    ref = f"{origin.url}/"
    unknown = asking.call("estimate", ref)
    assert (unknown.code, unknown.out) == (1, "")
    assert "never resolved on this node" in unknown.complaint
    assert asking.run("prefetch", ref, "--wait", "-q").code == 0
    told = asking.call("estimate", ref)
    assert told.code == 0, told.err
    shown = told.out + told.err
    for word in ("this", "best", "new", "node-1", "warm", "cold", "P90"):
        assert word in shown
    plain = asking.call("estimate", ref, "--node", "this", "--json")
    (this,) = plain.json["estimates"]
    assert (this["tier"], this["missing_bytes"]) == ("warm", 0)
    assert asking.call("estimate", ref, "--stream", "--json").json["estimates"]
    elsewhere = asking.call("estimate", ref, "--node", "gpu-99")
    assert elsewhere.code == 1
    assert "no node 'gpu-99'" in elsewhere.complaint
