"""Every command over a store with one model: what it prints, and what `--json` and `--quiet` do."""

from __future__ import annotations

from pathlib import Path

import pytest

import modelcache
from tests.agent.support import tree
from tests.main.conftest import FILES
from tests.main.support import Shell

TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def pulled(shell: Shell, model: Path) -> str:
    """The id of a model in the store."""
    done = shell.call("pull", f"file://{model}", "--json")
    assert done.code == 0, done.err
    return str(done.json["model_id"])


def test_pull_prints_the_snapshot_and_tells_the_rest_on_standard_error(shell: Shell, model: Path):
    done = shell.run("pull", f"file://{model}")
    assert done.code == 0
    assert tree(Path(done.out.strip())) == FILES
    assert done.out.count("\n") == 1
    assert "pulled file://" in done.err
    assert "4 files, 11.5 MB" in done.err
    again = shell.run("pull", f"file://{model}")
    assert again.out == done.out
    assert "nothing to fetch" in again.err


def test_pull_quiet_prints_the_path_only(shell: Shell, model: Path):
    done = shell.run("pull", f"file://{model}", "-q")
    assert (done.code, done.err) == (0, "")
    assert Path(done.out.strip()).is_dir()


def test_pull_json_has_path_id_bytes_and_report(shell: Shell, model: Path):
    done = shell.run("pull", f"file://{model}", "--json")
    assert done.err == ""
    assert set(done.json) == {
        *("path", "model_id", "ref", "fetched_bytes", "from_cache", "report"),
    }
    assert done.json["fetched_bytes"] == TOTAL
    assert done.json["report"]["files"] == 4
    again = shell.call("pull", f"file://{model}", "--json", "--max-age", "1h")
    assert again.json["from_cache"] is True
    assert again.json["fetched_bytes"] == 0


def test_filters_take_several_globs_each_and_the_ref_may_stand_anywhere(shell: Shell, model: Path):
    wanted = {name for name in FILES if not name.startswith("b.")}
    first = ("pull", "--include", "*.safetensors", "*.json", "*.txt", f"file://{model}")
    second = ("pull", f"file://{model}", "--include", "*.safetensors,*.json", "sub/*")
    for arguments in (first, second):
        done = shell.run(*arguments, "--exclude", "b.*", "--quiet")
        assert done.code == 0, done.err
        assert set(tree(Path(done.out.strip()))) == wanted


def test_ls_lists_and_is_quiet_with_ids(shell: Shell, pulled: str, model: Path):
    head, row = shell.run("ls").out.splitlines()
    assert head.startswith("MODEL")
    assert row.startswith(pulled[:12])
    assert row.endswith(f"file://{model}")
    assert shell.call("ls", "-q").out == f"{pulled}\n"
    (only,) = shell.call("ls", "--json").json
    assert only["state"] == "warm"
    assert (only["size_bytes"], only["files"]) == (TOTAL, 4)


def test_show_has_every_file(shell: Shell, pulled: str):
    text = shell.run("show", pulled[:8]).out
    assert all(name in text for name in FILES)
    assert shell.call("show", pulled, "-q").out.splitlines() == sorted(FILES)
    shown = shell.call("show", pulled, "--json").json
    assert {item["path"]: item["size_bytes"] for item in shown["file_list"]} == {
        name: len(data) for name, data in FILES.items()
    }


def test_show_diff_tells_what_changes_and_what_that_costs(shell: Shell, pulled: str, model: Path):
    (model / "config.json").write_bytes(b'{"changed": 1}')
    (model / "sub" / "vocab.txt").rename(model / "vocab.txt")
    done = shell.run("show", "--diff", pulled[:8], f"file://{model}", "--json")
    assert done.code == 0, done.err
    changed = {item["path"]: item["change"] for item in done.json["files"]}
    assert changed == {
        "a.safetensors": "same",
        "b.safetensors": "same",
        "config.json": "changed",
        "sub/vocab.txt": "removed",
        "vocab.txt": "added",
    }
    shown = shell.call("show", "--diff", pulled, f"file://{model}")
    assert "changed" in shown.out
    assert "to fetch  " in shown.out
    assert shell.call("show", "--diff", pulled, pulled, "-q").out == "0\n"
    assert shell.call("ls", "-q").out == f"{pulled}\n", "what was only compared is not kept"


def test_show_diff_wants_two_models(shell: Shell, pulled: str):
    for arguments in (("--diff", pulled), (pulled, pulled)):
        done = shell.call("show", *arguments)
        assert done.code == 2
        assert "show --diff MODEL OTHER" in done.complaint
    assert shell.call("show", "--diff", pulled, "0123abcd").code == 1


def test_path_takes_ids_their_starts_and_refs(shell: Shell, pulled: str, model: Path):
    expected = str(shell.store / "snapshots" / pulled)
    assert shell.run("path", pulled).out == f"{expected}\n"
    for what in (pulled[:6].upper(), f"file://{model}"):
        assert shell.call("path", what).out == f"{expected}\n"
    assert shell.call("path", pulled, "--json").json == {"path": expected}


def test_verify_finds_an_intact_store_intact(shell: Shell, pulled: str):
    done = shell.run("verify")
    assert (done.code, "intact" in done.out) == (0, True)
    assert shell.call("verify", pulled, "-q").out == ""
    (result,) = shell.call("verify", "--json").json
    assert result["size_bytes"] == TOTAL
    assert result["bad_chunks"] == {}


def test_du_and_rm_agree_on_what_is_freed(shell: Shell, pulled: str):
    used = shell.call("du", "--json").json
    assert (used["blobs_bytes"], used["blobs"]) == (TOTAL, 4)
    assert used["models"] == [{"model_id": pulled, "size_bytes": TOTAL, "unique_bytes": TOTAL}]
    assert shell.call("du", "-q").out == f"{TOTAL}\n"
    assert "4 blobs" in shell.run("du").out
    assert shell.call("rm", pulled, "--json").json == {"freed_bytes": TOTAL}
    assert shell.run("ls").out == "no models in this store\n"
    assert shell.call("ls", "--json").json == []


def test_a_pinned_model_stays_until_it_is_unpinned_or_forced_out(shell: Shell, pulled: str):
    assert shell.run("pin", pulled, "--note", "demo").err == f"pinned {pulled[:12]}\n"
    refused = shell.call("rm", pulled)
    assert refused.code == 1
    assert "protected (pin demo); unpin it or use --force" in refused.complaint
    (leased,) = shell.call("ls", "--json").json
    assert [(lease["kind"], lease["note"]) for lease in leased["leases"]] == [("pin", "demo")]
    assert shell.call("unpin", pulled, "--json").json == {"pinned": False, "was_pinned": True}
    assert shell.call("unpin", pulled).err == "was not pinned\n"
    assert shell.call("pin", pulled, "--json").json == {"model_id": pulled, "pinned": True}
    assert shell.call("rm", pulled, "--force", "-q").code == 0


def test_a_dry_run_says_what_would_go_and_lets_it_stay(shell: Shell, model: Path, pulled: str):
    assert shell.call("gc", "--dry-run").err.startswith("0 models would be evicted")
    quota = {"MODELCACHE_STORE_QUOTA_BYTES": "20MB"}
    done = shell.call("gc", "--dry-run", "--need", "15MB", **quota)
    assert done.out.startswith(pulled[:12])
    assert "1 model would be evicted" in done.err
    found = shell.call("gc", "--dry-run", "--need", "30MB", "--json", **quota).json
    assert found["models"] == [{"model_id": pulled, "refs": [f"file://{model}"]}]
    assert found["freed_bytes"] >= TOTAL
    assert found["lacking_bytes"] > 0
    assert shell.call("path", pulled).code == 0
    shell.call("pin", pulled)
    assert shell.call("gc", "--dry-run", "--need", "15MB", "--json", **quota).json["models"] == []
    done = shell.call("gc", "--need", "1GB")
    assert (done.code, "--dry-run" in done.complaint) == (2, True)


def test_gc_of_a_tidy_store_frees_nothing(shell: Shell, pulled: str):
    del pulled
    assert shell.run("gc").err.startswith("freed 0 B")
    assert shell.call("gc", "--json").json == {
        "freed_bytes": 0,
        "blobs": 0,
        "partials": 0,
        "leases": 0,
        "evicted": [],
    }


def test_explain_tells_of_the_last_pull(shell: Shell, pulled: str):
    text = shell.run("explain", pulled).out
    assert all(word in text for word in ("PHASE", "resolving", "WORKERS' TIME", "SOURCE"))
    report = shell.call("explain", pulled, "--json").json
    assert report["model_id"] == pulled
    assert report["fetched_bytes"] == TOTAL
    assert shell.call("explain", pulled, "-q").out.count("\n") == 1


def test_version_is_the_packages(shell: Shell):
    assert shell.run("version").out == f"{modelcache.__version__}\n"
    assert shell.call("version", "--json").json == {"version": modelcache.__version__}


def test_looking_makes_no_store(shell: Shell):
    for command in ("ls", "du"):
        assert shell.call(command).code == 0
    assert shell.call("show", "abcdef").code == 1
    assert not shell.store.exists()


@pytest.mark.parametrize(
    "command",
    [
        *("pull", "ls", "show", "path", "verify", "du", "rm", "gc"),
        *("pin", "unpin", "explain", "doctor", "version"),
    ],
)
def test_every_command_has_help_and_json(shell: Shell, command: str):
    done = shell.call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: modelcache")
    assert "--json" in done.out


def test_the_version_is_an_option_and_a_command(shell: Shell):
    asked = shell.run("--version")
    assert (asked.code, asked.err) == (0, "")
    assert asked.out == shell.run("version").out


def test_the_program_lists_its_commands(shell: Shell):
    done = shell.run("--help")
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in ("pull", "ls", "verify", "explain", "doctor"))
