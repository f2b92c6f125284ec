"""`modelcache scaler` as a process, where there is no cluster to be had."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.support import wait_until
from tests.main.support import Shell, finish
from tests.servers.process import free_port

FILES = ("--cert-file", "c", "--key-file", "k")
KEDA_FILES = ["--keda-cert-file", "c", "--keda-key-file", "k"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "store")


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Of an API server that is not there."""
    server = {"server": f"http://127.0.0.1:{free_port()}"}
    path = tmp_path / "kubeconfig"
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": server}],
        "users": [{"name": "x", "user": {"token": "x"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--cert-file", "c"], "--cert-file and --key-file go together"),
        ([*FILES, "--service", "x"], "leave --cert-file and --key-file out"),
        (["--secret", "x"], "--secret is for --service"),
        (["--service", "sp ace"], "'sp ace' cannot be the name"),
        (["--plain-listen", "9872"], "has no port"),
        (["--keda-listen", "nonsense:x"], "nonsense:x"),
        (["--keda-cert-file", "c"], "--keda-cert-file and --keda-key-file go together"),
        (KEDA_FILES, "--keda-cert-file is for --keda-listen"),
        (["--keda-client-ca-file", "a"], "--keda-client-ca-file needs --keda-cert-file"),
        (["--service", "x", "--listen", "x"], "has no port"),
        (["--prometheus", "prometheus:9090"], "--prometheus takes an address such as"),
        (["--prometheus", "http://x/?query=up"], "--prometheus takes an address such as"),
        (["--prometheus", "http://[::1"], "--prometheus takes an address such as"),
        (["--prometheus-token-file", "t"], "--prometheus-token-file is for --prometheus"),
        (["--kubeconfig", "/nowhere"], "/nowhere"),
        (["--linger", "long"], "'long' is not a duration"),
        (["--checkpoint-every", "1s"], "--checkpoint-every takes 5s to 1h"),
        (["--checkpoint-every", "2h"], "--checkpoint-every takes 5s to 1h"),
        (["--checkpoint-every", "often"], "'often' is not a duration"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_flags_are_told_in_one_line(shell: Shell, options: list[str], complaint: str):
    done = shell.call("scaler", "--plain-listen", "127.0.0.1:0", *options)
    assert done.code == 2
    assert complaint in done.complaint


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_without_its_cluster_it_lives_is_not_ready_and_ends_in_order(
    shell: Shell, kubeconfig: Path
):
    port = free_port()
    process = shell.start(
        *("scaler", "--plain-listen", f"127.0.0.1:{port}", "--kubeconfig", str(kubeconfig)),
        *("--keda-listen", "127.0.0.1:0", "--linger", "0s"),
    )
    try:
        wait_until(lambda: status(port, "/healthz") == 200)
        assert status(port, "/readyz") == 503
        assert status(port, "/metrics") == 200
        process.send_signal(signal.SIGTERM)
        done = finish(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert done.code == 0
    events = [json.loads(line)["event"] for line in done.err.splitlines()]
    assert events[-1] == "scaler_stopped"
    assert set(events) <= {
        "lease_failed",
        "scaler_ready",
        "scaler_stopping",
        "scaler_stopped",
        "watch_broke",
    }
