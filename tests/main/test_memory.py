"""`warm` on the command line, over a store and through an agent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.store.copies import TMPFS, filesystem_type
from tests.agent.nodes import node_settings
from tests.agent.support import tree
from tests.faces.http.agents import running_faces
from tests.main.conftest import FILES
from tests.main.support import Shell

SHM = Path("/dev/shm")  # noqa: S108 - the tmpfs that every Linux has
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def pulled(shell: Shell, model: Path) -> str:
    done = shell.call("pull", f"file://{model}", "--json")
    assert done.code == 0, done.err
    return str(done.json["model_id"])


@pytest.fixture
def shm() -> Iterator[Path]:
    if not SHM.is_dir() or filesystem_type(SHM) != TMPFS:
        pytest.skip(f"{SHM} is no tmpfs here")
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix="modelcache-test-"))
    yield folder
    shutil.rmtree(folder)


def test_warm_brings_a_model_into_the_page_cache_and_ls_shows_it(shell: Shell, pulled: str) -> None:
    done = shell.run("warm", pulled[:12], "--memory")
    assert (done.code, done.out) == (0, "")
    assert done.err == "11.5 MB in memory\n"
    (listed,) = shell.run("ls", "--json").json
    assert listed["memory"] == {"resident_bytes": TOTAL, "copy_bytes": 0, "copy_path": None}
    assert "100%" in shell.run("ls").out
    assert shell.call("warm", pulled, "--memory", "--json").json == listed["memory"]


def test_a_locked_copy_is_printed_shown_and_dropped(shell: Shell, pulled: str, shm: Path) -> None:
    env = {"MODELCACHE_MEMORY_FOLDER": str(shm)}
    done = shell.run("warm", pulled, "--locked", **env)
    assert done.code == 0, done.err
    assert tree(Path(done.out.strip())) == FILES
    assert "%, locked" in shell.run("ls", **env).out
    assert "%, locked" in shell.run("show", pulled, **env).out
    dropped = shell.run("warm", pulled, "--drop", "--json", **env)
    assert dropped.json["freed_bytes"] >= TOTAL
    assert not Path(done.out.strip()).exists()
    (listed,) = shell.run("ls", "--json", **env).json
    assert listed["state"] == "warm"
    assert listed["memory"]["copy_path"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ([], 2, "--memory, --locked and --drop"),
        (["--memory", "--drop"], 2, "--memory, --locked and --drop"),
        (["--locked"], 2, "memory.folder"),
        (["--memory", "--agent", "x", "--store", "y"], 2, "--agent or --store"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    shell: Shell, pulled: str, arguments: list[str], code: int, why: str
) -> None:
    done = shell.call("warm", pulled, *arguments)
    assert done.code == code
    assert why in done.complaint


@pytest.mark.parametrize("what", ["0123abcd", "https://host/none/"])
def test_a_model_that_is_not_here_is_one_clear_line(shell: Shell, what: str) -> None:
    for way in ("--memory", "--drop"):
        done = shell.call("warm", what, way)
        assert done.code == 1
        assert "store" in done.complaint


def test_a_model_that_is_nonsense_is_a_usage_error(shell: Shell, pulled: str) -> None:
    assert pulled
    assert shell.call("warm", "nonsense", "--memory").code == 2


def test_an_agent_does_it_on_its_node(shell: Shell, tmp_path: Path, model: Path, shm: Path) -> None:
    base = node_settings(tmp_path / "agent", node="n", socket=tmp_path / "run/agent.sock")
    chosen = replace(base, memory=replace(base.memory, folder=str(shm)))
    ref = f"file://{model}"
    with running_faces(chosen) as faces:
        agent = ("--agent", str(faces.socket))
        assert shell.call("prefetch", ref, "--wait", *agent).code == 0
        done = shell.call("warm", ref, "--memory", "--json", *agent)
        assert (done.code, done.json["resident_bytes"]) == (0, TOTAL), done.err
        locked = shell.call("warm", ref, "--locked", *agent)
        assert locked.code == 0, locked.err
        assert tree(Path(locked.out.strip())) == FILES
        dropped = shell.call("warm", ref, "--drop", "--json", *agent)
        assert dropped.json["freed_bytes"] >= TOTAL
        missing = shell.call("warm", "0123abcd", "--memory", *agent)
        assert missing.code == 1
        assert missing.complaint


def test_what_an_agent_fails_with_is_its_line(shell: Shell, tmp_path: Path, model: Path) -> None:
    chosen = node_settings(tmp_path / "agent", node="n", socket=tmp_path / "run/agent.sock")
    ref = f"file://{model}"
    with running_faces(chosen) as faces:
        agent = ("--agent", str(faces.socket))
        assert shell.call("prefetch", ref, "--wait", *agent).code == 0
        done = shell.call("warm", ref, "--locked", *agent)
        assert done.code == 2
        assert "memory.folder" in done.complaint
