"""The tests' hub is faithful: the unmodified huggingface_hub client downloads from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers.hub import Hub

FILES = {
    "config.json": b'{"hidden_size": 4096}',
    "empty.txt": b"",
    "model.safetensors": os.urandom(300_000),
    "sub folder/tokenizer.model": b"words" * 100,
    "sub folder/weights#1.bin": os.urandom(70_000),
}
READER = "hf_good"
CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
root = Path(snapshot_download("org/name"))
info = HfApi().model_info("org/name", revision="main", files_metadata=False)
one = hf_hub_download("org/name", "config.json", revision=info.sha)
listed = HfApi().list_repo_tree("org/name")
tree = {item.path: item.size for item in listed if hasattr(item, "size")}
print(json.dumps({"root": str(root), "sha": info.sha, "one": one, "tree": tree}))
"""


def client(hub: Hub, home: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program that uses huggingface_hub against the hub."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def downloaded(hub: Hub, home: Path, **env: str) -> dict[str, Any]:
    done = client(hub, home, CLIENT, **env)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    root = Path(result["root"])
    result["files"] = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    return result


@pytest.mark.parametrize("small_files_redirect", [False, True])
def test_the_hubs_own_client_downloads_byte_for_byte(hub, tmp_path, small_files_redirect):
    hub.small_files_redirect = small_files_redirect
    hub.page_entries = 2
    sha = hub.repository().commit(FILES)
    result = downloaded(hub, tmp_path)
    assert result["files"] == FILES
    assert result["sha"] == sha
    assert Path(result["one"]).read_bytes() == FILES["config.json"]
    assert result["tree"] == {name: len(FILES[name]) for name in FILES if "/" not in name}
    assert all(asked.method == "GET" for asked in hub.cdn.asked)


def test_the_hubs_own_client_follows_a_repository_that_moved(hub, tmp_path):
    hub.repository("org/new").commit(FILES)
    hub.repository().moved_to = "org/new"
    assert downloaded(hub, tmp_path)["files"] == FILES


def test_the_hubs_own_client_reads_what_its_token_may(hub, tmp_path):
    hub.repository().commit(FILES)
    hub.repository().private = hub.repository().gated = True
    hub.readers = {READER: {"org/name"}}
    assert downloaded(hub, tmp_path, HF_TOKEN=READER)["files"] == FILES
    assert all("authorization" not in asked.headers for asked in hub.cdn.asked)


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("org/gated", "main", "GatedRepoError"),
        ("org/private", "main", "RepositoryNotFoundError"),
        ("org/absent", "main", "RepositoryNotFoundError"),
        ("org/public", "v9", "RevisionNotFoundError"),
    ],
)
def test_the_hubs_own_client_knows_its_refusals(hub, tmp_path, name, revision, expected):
    hub.repository("org/public").commit(FILES)
    hub.repository("org/gated").commit(FILES)
    hub.repository("org/gated").gated = True
    hub.repository("org/private").commit(FILES)
    hub.repository("org/private").private = True
    code = f"""
from huggingface_hub import hf_hub_download
try:
    hf_hub_download({name!r}, "config.json", revision={revision!r})
except Exception as error:
    print(type(error).__name__)
"""
    assert client(hub, tmp_path, code).stdout.split() == [expected]
