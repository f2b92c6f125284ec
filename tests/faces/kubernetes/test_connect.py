"""Ways to a cluster, and what several threads do on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelcache.errors import InvalidConfig
from modelcache.faces.kubernetes.connect import connect

DECODING = """
import sys, threading, msgspec
from lightkube.resources.core_v1 import Node, Pod
from modelcache.faces.kubernetes.connect import prepare_kinds
prepare_kinds()
sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
def decode(kind):
    together.wait()
    for _ in range(50):
        msgspec.json.decode(b'{"metadata": {"name": "x"}}', type=kind)
threads = [threading.Thread(target=decode, args=(kind,)) for kind in (Pod, Node) * 4]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_several_watches_may_begin_at_once():
    """Without preparation this crashes the interpreter, every time."""
    assert subprocess.run([sys.executable, "-c", DECODING], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    ["", "not: [yaml", "apiVersion: v1\nkind: Config\ncontexts: []\nclusters: []\nusers: []\n"],
    ids=["empty", "malformed", "without a context"],
)
def test_a_kubeconfig_that_is_none_is_told_in_one_line(tmp_path: Path, text: str):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(InvalidConfig, match=r"kubernetes\.kubeconfig"):
        connect(str(path))
    with pytest.raises(InvalidConfig, match=r"kubernetes\.kubeconfig"):
        connect(str(tmp_path / "missing"))
