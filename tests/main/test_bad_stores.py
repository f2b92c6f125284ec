"""Stores that are full, foreign, read-only or damaged: one line, and no harm done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.agent.support import tree
from tests.main.conftest import FILES, MIB
from tests.main.support import Shell, chunks_kept, finish, wait_until
from tests.servers.faults import Fault, FaultProxy, held_from

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    point = tmp_path / "tiny"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "modelcache-test", str(point)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def blob_of(snapshot: Path, name: str) -> Path:
    """The blob behind a file of a snapshot."""
    inode = (snapshot / name).stat().st_ino
    (found,) = [
        path for path in (snapshot.parents[1] / "blobs").glob("*/*") if path.stat().st_ino == inode
    ]
    return found


def damage(path: Path, offset: int) -> None:
    """Change a byte behind the store's back."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(1)
        file.seek(offset)
        file.write(bytes([before[0] ^ 0xFF]))
    path.chmod(0o444)


@needs_root
@pytest.mark.kernel
@pytest.mark.parametrize("reserve", ["0", "1MiB"])
def test_a_full_disk_is_said_and_nothing_is_shown(
    shell: Shell, tiny: Path, model: Path, reserve: str
):
    shell.store = tiny / "store"
    done = shell.call("pull", f"file://{model}", MODELCACHE_STORE_RESERVE_BYTES=reserve)
    assert (done.code, done.out) == (1, "")
    assert done.complaint
    assert not list((shell.store / "snapshots").iterdir())
    answer = shell.call("pull", f"file://{model}", "--json", MODELCACHE_STORE_RESERVE_BYTES=reserve)
    assert answer.json["error"]["code"] == "store_full"


@needs_root
@pytest.mark.kernel
def test_a_disk_that_somebody_else_fills_meanwhile_is_said(
    shell: Shell, tiny: Path, origin: FaultProxy
):
    shell.store = tiny / "store"
    origin.plan = lambda _: Fault(bytes_s=4e6)
    pulling = shell.start(
        "pull", f"{origin.url}/b.safetensors", "--json", MODELCACHE_STORE_RESERVE_BYTES="0"
    )
    wait_until(lambda: origin.body_bytes > MIB // 2)
    filler = tiny / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * MIB)
    done = finish(pulling)
    if done.code:  # room that was preallocated stays ours
        assert done.json["error"]["code"] == "store_full"
    filler.unlink()
    again = shell.call("pull", f"{origin.url}/b.safetensors", MODELCACHE_STORE_RESERVE_BYTES="0")
    assert again.code == 0, again.err


def test_a_quota_that_is_too_small_is_said_with_numbers(shell: Shell, model: Path):
    done = shell.call("pull", f"file://{model}", MODELCACHE_STORE_QUOTA_BYTES="1MB")
    assert done.code == 1
    assert "quota" in done.complaint


@needs_root
@pytest.mark.kernel
def test_a_read_only_store_can_be_looked_at_and_not_be_changed(
    shell: Shell, tiny: Path, model: Path
):
    shell.store = tiny / "store"
    env = {"MODELCACHE_STORE_RESERVE_BYTES": "0"}
    pulled = shell.call("pull", f"file://{model}", "--include", "b.*", "--json", **env)
    assert pulled.code == 0, pulled.out
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    what = pulled.json["model_id"]
    for command in (("ls",), ("show", what), ("path", what), ("du",), ("explain", what)):
        assert shell.call(*command).code == 0
    assert "intact" in shell.call("verify", "--no-repair").out
    for command in (("pull", f"file://{model}"), ("rm", what), ("pin", what), ("gc",)):
        done = shell.call(*command)
        assert done.code == 1
        assert str(shell.store) in done.complaint


def test_a_store_of_a_newer_version_is_left_alone(shell: Shell, model: Path):
    assert shell.call("pull", f"file://{model}").code == 0
    (shell.store / "store.json").write_text(json.dumps({"format": 99}))
    for command in (("ls",), ("pull", f"file://{model}"), ("gc",)):
        done = shell.call(*command)
        assert done.code == 1
        assert "format 99" in done.complaint
    (shell.store / "store.json").write_text("{")
    assert "damaged" in shell.call("ls").complaint


@pytest.mark.parametrize("command", [("ls",), ("gc",), ("pull", "file:///tmp")])
def test_a_file_where_the_store_should_be_is_named(shell: Shell, tmp_path: Path, command):
    shell.store = tmp_path / "file"
    shell.store.write_text("mine")
    done = shell.call(*command)
    assert done.code == 1
    assert f"{shell.store} is not a folder" in done.complaint
    assert shell.store.read_text() == "mine"


def test_verify_finds_a_changed_blob_and_fetches_the_bad_chunk_only(
    shell: Shell, origin: FaultProxy
):
    snapshot = Path(shell.call("pull", f"{origin.url}/").out.strip())
    damage(blob_of(snapshot, "a.safetensors"), 5 * MIB)
    found = shell.run("verify", "--no-repair")
    assert found.code == 1
    assert "a.safetensors: 1 bad chunk" in found.out
    assert "DAMAGED, not repaired" in found.out
    before = len(origin.requests)
    repaired = shell.call("verify", "--json")
    assert repaired.code == 0, repaired.err
    (result,) = repaired.json
    assert result["bad_chunks"] == {"a.safetensors": [2]}
    assert result["repaired"] is True
    spans = [request.span for request in origin.requests[before:] if request.span]
    assert spans == [(4 * MIB, 6 * MIB)]
    assert tree(snapshot) == FILES
    assert shell.call("verify").code == 0


def test_a_pull_mends_what_was_changed_behind_its_back(shell: Shell, origin: FaultProxy):
    snapshot = Path(shell.call("pull", f"{origin.url}/").out.strip())
    damage(blob_of(snapshot, "b.safetensors"), 0)
    done = shell.call("pull", f"{origin.url}/")
    assert done.code == 0, done.err
    assert tree(snapshot) == FILES


def test_damage_that_cannot_be_fetched_again_is_a_failure(shell: Shell, model: Path):
    snapshot = Path(shell.call("pull", f"file://{model}", "--link", "copy").out.strip())
    damage(blob_of(snapshot, "a.safetensors"), 0)
    (model / "a.safetensors").unlink()
    done = shell.call("verify")
    assert done.code == 1
    assert "a.safetensors" in done.complaint


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x00" * 4096])
def test_a_corrupt_journal_costs_bytes_and_no_correctness(
    shell: Shell, origin: FaultProxy, junk: bytes
):
    origin.plan = held_from(2 * MIB, "a.safetensors")
    pulling = shell.start("pull", f"{origin.url}/")
    wait_until(lambda: chunks_kept(shell.store))
    pulling.kill()
    finish(pulling)
    origin.plan = lambda _: None
    for journal in (shell.store / "partial").glob("*/journal"):
        journal.write_bytes(junk)
    for command in ("ls", "du", "gc"):
        assert shell.call(command).code == 0
    done = shell.call("pull", f"{origin.url}/", "-q")
    assert (done.code, done.err) == (0, "")
    assert tree(Path(done.out.strip())) == FILES


def test_a_damaged_manifest_spoils_its_model_only(shell: Shell, model: Path):
    first = shell.call("pull", f"file://{model}", "--json").json["model_id"]
    second = shell.call("pull", f"file://{model}", "--include", "b.*", "--json").json["model_id"]
    (shell.store / "models" / first / "manifest.json").write_text("{")
    listed = {item["model_id"] for item in shell.call("ls", "--json").json}
    assert listed == {first, second}
    assert shell.call("show", second).code == 0
    broken = shell.call("show", first)
    assert broken.code == 1
    assert broken.complaint
    assert shell.call("rm", first).code == 0
    assert shell.call("pull", f"file://{model}").code == 0
