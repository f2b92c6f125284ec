"""`modelcache env hf`: the unmodified hub client finds the store's models, without network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.main.support import Done, Shell
from tests.servers.hub import Hub

TENSOR = np.arange(6, dtype=np.float32).reshape(2, 3)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": save({"weight": TENSOR}),
    "sub/tokenizer.model": b"words",
}
CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from safetensors.numpy import load_file
name, revision = sys.argv[1], sys.argv[2] or None
root = Path(snapshot_download(name, revision=revision, local_files_only=True))
files = {path.relative_to(root).as_posix(): path.read_bytes().hex()
         for path in root.rglob("*") if path.is_file()}
one = hf_hub_download(name, "config.json", revision=revision)
tensor = load_file(root / "model.safetensors")["weight"].tolist()
cached = try_to_load_from_cache(name, "config.json", revision=revision)
print(json.dumps({"files": files, "one": one, "tensor": tensor, "cached": cached}))
"""


def variables(done: Done) -> dict[str, str]:
    """What a POSIX shell makes of the printed lines."""
    assert done.code == 0, done.err
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{done.out}\nenv -0"],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = dict(pair.split("=", 1) for pair in shell.stdout.split("\0") if pair)
    return {name: value for name, value in pairs.items() if name.startswith("HF_")}


def client(env: dict[str, str], name: str, revision: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, name, revision],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def loaded(env: dict[str, str], name: str, revision: str = "") -> dict[str, Any]:
    done = client(env, name, revision)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def hexed(files: dict[str, bytes]) -> dict[str, str]:
    return {name: content.hex() for name, content in files.items()}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "local model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "local model"


def pulled(shell: Shell, ref: str, *options: str) -> str:
    done = shell.call("pull", ref, "--json", *options)
    assert done.code == 0, done.err
    return str(done.json["model_id"])


def hub_ref(hub: Hub, rest: str = "") -> str:
    return f"hf://org/name{rest}?endpoint={hub.url}"


def test_a_model_of_the_hub_is_found_by_its_name(shell: Shell, hub: Hub):
    hub.repository().commit(FILES)
    pulled(shell, hub_ref(hub))
    env = variables(shell.run("env", "hf", hub_ref(hub)))
    assert set(env) == {"HF_HUB_CACHE", "HF_HUB_OFFLINE"}
    asked = len(hub.api.asked)
    result = loaded(env, "org/name")
    assert result["files"] == hexed(FILES)
    assert Path(result["one"]).read_bytes() == FILES["config.json"]
    assert result["tensor"] == TENSOR.tolist()
    assert result["cached"] == result["one"]
    assert len(hub.api.asked) == asked


def test_revisions_and_commits_are_found_by_theirs(shell: Shell, hub: Hub):
    old = hub.repository().commit(FILES)
    new = hub.repository().commit({**FILES, "config.json": b"{}"})
    hub.repository().refs |= {"v1": old, "refs/pr/3": new}
    pulled(shell, hub_ref(hub, "@v1"))
    pulled(shell, hub_ref(hub, "@refs/pr/3"))
    env = variables(shell.call("env", "hf", hub_ref(hub, "@v1"), hub_ref(hub, "@refs/pr/3")))
    for revision in ("", "v1", old):
        assert loaded(env, "org/name", revision)["files"] == hexed(FILES)
    for revision in ("refs/pr/3", new):
        found = loaded(env, "org/name", revision)["files"]
        assert found == hexed({**FILES, "config.json": b"{}"})


def test_two_revisions_asked_for_one_by_one_do_not_disturb_each_other(shell: Shell, hub: Hub):
    hub.repository().commit(FILES, "v1")
    hub.repository().commit({**FILES, "config.json": b"{}"}, "v2")
    envs = {}
    for revision in ("v1", "v2"):
        pulled(shell, hub_ref(hub, f"@{revision}"))
        envs[revision] = variables(shell.call("env", "hf", hub_ref(hub, f"@{revision}")))
    assert loaded(envs["v1"], "org/name")["files"] == hexed(FILES)
    assert loaded(envs["v2"], "org/name")["files"]["config.json"] == b"{}".hex()


def test_a_folder_of_a_repository_is_shown_where_it_is_in_it(shell: Shell, hub: Hub):
    hub.repository().commit({**FILES, "4bit/weights.gguf": b"x"})
    pulled(shell, hub_ref(hub, "/4bit"))
    pulled(shell, hub_ref(hub))
    pulled(shell, hub_ref(hub, "/sub/tokenizer.model"))
    for rest, expected in (("/4bit", "4bit/weights.gguf"), *[("/sub/tokenizer.model",) * 2]):
        done = shell.call("env", "hf", hub_ref(hub, rest), "--json")
        root = Path(done.json["models"][0]["path"])
        found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        assert found == [expected.removeprefix("/")]


def test_a_model_from_elsewhere_gets_the_name_it_is_given(shell: Shell, local: Path):
    ref = f"file://{str(local).replace(' ', '%20')}"
    model_id = pulled(shell, ref)
    done = shell.call("env", "hf", ref, "--as", "org/name", "--json")
    assert done.json["models"][0]["commit"] == model_id[:40]
    env = done.json["environment"]
    assert loaded(env, "org/name")["files"] == hexed(FILES)
    assert loaded(env, "org/name", model_id[:40])["files"] == hexed(FILES)


def test_a_model_id_stands_for_its_ref(shell: Shell, hub: Hub):
    hub.repository().commit(FILES)
    model_id = pulled(shell, hub_ref(hub, "@main"))
    by_id = shell.call("env", "hf", model_id[:12])
    assert by_id.out == shell.call("env", "hf", hub_ref(hub, "@main")).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hf://org/absent"], "was not pulled into this store; run `modelcache pull` first"),
        (["{local}"], "--as ORG/NAME"),
        (["{local}", "--as", "a/b/c"], "not the name of a repository"),
        (["{local}", "--as", "../../etc"], "not a repository"),
        (["{local}", "--as", "org/a--b"], "not the name of a repository"),
        (["{local}", "{local}", "--as", "org/name"], "names one model"),
        (["hf://org/name@..?endpoint={url}"], "was not pulled"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    shell: Shell, local: Path, hub: Hub, arguments: list[str], said: str
):
    ref = f"file://{str(local).replace(' ', '%20')}"
    pulled(shell, ref)
    done = shell.call("env", "hf", *(text.format(local=ref, url=hub.url) for text in arguments))
    assert done.code in {1, 2}
    assert done.out == ""
    assert said in done.complaint


def test_a_model_that_is_not_complete_is_not_shown(shell: Shell, local: Path):
    ref = f"file://{str(local).replace(' ', '%20')}"
    model_id = pulled(shell, ref)
    snapshot = shell.store / "snapshots" / model_id
    snapshot.rename(shell.store / "aside")
    done = shell.call("env", "hf", ref, "--as", "org/name")
    assert done.code == 1
    assert "pull it again" in done.complaint


def test_a_model_that_was_evicted_is_no_longer_found_and_garbage_takes_its_view(
    shell: Shell, hub: Hub
):
    hub.repository().commit(FILES)
    pulled(shell, hub_ref(hub))
    env = variables(shell.call("env", "hf", hub_ref(hub)))
    assert shell.call("rm", hub_ref(hub)).code == 0
    assert client(env, "org/name").returncode != 0
    assert shell.call("gc").code == 0
    assert not Path(env["HF_HUB_CACHE"]).exists()
    pulled(shell, hub_ref(hub))
    assert variables(shell.call("env", "hf", hub_ref(hub))) == env
    assert loaded(env, "org/name")["files"] == hexed(FILES)


def test_a_file_that_was_repaired_is_seen_at_once(shell: Shell, hub: Hub):
    hub.repository().commit(FILES)
    pulled(shell, hub_ref(hub))
    done = shell.call("env", "hf", hub_ref(hub), "--json")
    shown = Path(done.json["models"][0]["path"]) / "model.safetensors"
    blob = shown.resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"x" * len(FILES["model.safetensors"]))
    assert shell.call("verify").code == 0
    assert shown.read_bytes() == FILES["model.safetensors"]


def test_a_store_with_spaces_and_quotes_in_its_path_survives_a_shell(tmp_path: Path, hub: Hub):
    shell = Shell(tmp_path / """a store's "own" \\ place""")
    hub.repository().commit(FILES)
    pulled(shell, hub_ref(hub))
    env = variables(shell.call("env", "hf", hub_ref(hub)))
    assert env["HF_HUB_CACHE"].startswith(f"{shell.store}/")
    assert loaded(env, "org/name")["files"] == hexed(FILES)
