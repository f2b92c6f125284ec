"""Nothing that opens a door is printed, reported or shown, whatever goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.main.support import Shell
from tests.servers.faults import SLOW_DOWN, Fault, FaultProxy
from tests.servers.minio import Minio
from tests.servers.uploads import s3_client, upload_tree

PASSWORD = "hunter2-password"  # noqa: S105 - to be looked for
SIGNATURE = "X-Amz-Signature=0123456789abcdef"


def told(shell: Shell, ref: str, *options: str) -> str:
    """Everything that commands about this ref print, whether they work or not."""
    commands = [
        ("pull", ref, "--verbose", *options),
        ("pull", ref, "--json", *options),
        *((name, ref, *mode) for name in ("show", "explain") for mode in ((), ("--json",))),
        *(("ls",), ("ls", "--json"), ("du",), ("du", "--json"), ("verify", "--json")),
        ("doctor", ref, "--json"),
    ]
    return "".join(done.out + done.err for done in (shell.call(*command) for command in commands))


def shown(store: Path) -> str:
    """Reports as they are kept."""
    return "".join(path.read_text() for path in store.glob("models/*/report.json"))


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.faces.doctor.DISK_TEST_BYTES", 16 << 20)
    monkeypatch.setattr("modelcache.faces.doctor.NETWORK_TEST_BYTES", 16 << 20)


def test_a_password_in_a_url_is_refused_and_not_repeated(shell: Shell):
    for ref in (f"https://user:{PASSWORD}@host/m", f"http://user:{PASSWORD}@host:bad/m"):
        everything = told(shell, ref)
        assert PASSWORD not in everything
        assert "malformed" in everything or "~/.netrc" in everything


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="it works"),
        pytest.param(SLOW_DOWN, id="retries"),
        pytest.param(Fault(status=403, body=b"no"), id="refused"),
        pytest.param(Fault(status=302, headers={"Location": f"/x?{SIGNATURE}"}), id="redirects"),
    ],
)
def test_a_signed_query_is_never_repeated(shell: Shell, origin: FaultProxy, fault: Fault | None):
    faults = [fault] * 2 if fault is SLOW_DOWN else [fault] * 1000
    origin.plan = lambda request: faults.pop() if faults and request.span else None
    everything = told(shell, f"{origin.url}/a.safetensors?{SIGNATURE}", "--retries", "3")
    assert "a.safetensors" in everything
    assert SIGNATURE not in everything
    assert "0123456789abcdef" not in everything + shown(shell.store)


def test_a_bearer_token_is_sent_and_not_shown(shell: Shell, origin: FaultProxy):
    shell.env["MODELCACHE_HTTP_HEADERS"] = f"Authorization: Bearer {PASSWORD}"
    assert PASSWORD not in told(shell, f"{origin.url}/") + shown(shell.store)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["right", "wrong"])
def test_keys_of_s3_are_never_shown(shell: Shell, minio: Minio, model: Path, key: str):
    upload_tree(minio, "cli-keys", "m", model)
    secret = minio.secret_key if key == "right" else PASSWORD
    with FaultProxy(minio.url) as proxy:
        proxy.plan = lambda request: SLOW_DOWN if request.number % 5 == 4 else None
        shell.env.update(MODELCACHE_S3_ENDPOINT=proxy.url, AWS_SECRET_ACCESS_KEY=secret)
        everything = told(shell, "s3://cli-keys/m")
    assert "cli-keys" in everything
    for word in (secret, "Signature", "AWS4-HMAC", minio.access_key):
        assert word not in everything + shown(shell.store)


def test_a_presigned_url_works_and_is_not_kept(shell: Shell, minio: Minio):
    client = s3_client(minio)
    client.create_bucket(Bucket="cli-presigned")
    client.put_object(Bucket="cli-presigned", Key="w.bin", Body=b"weights")
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": "cli-presigned", "Key": "w.bin"}
    )
    done = shell.call("pull", url, "--json")
    listed = shell.call("ls", "--json")
    words = done.out + done.err + listed.out + shown(shell.store)
    assert "w.bin" in words
    assert "Signature" not in words


def test_a_traceback_needs_to_be_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("modelcache.agent.Engine.models", broken)
    done = shell.call("ls")
    assert done.code == 1
    assert done.err.startswith("modelcache: this is a bug: RuntimeError: unforeseen")
    as_json = shell.call("ls", "--json")
    assert json.loads(as_json.out)["error"]["code"] == "bug"
    with pytest.raises(RuntimeError, match="unforeseen"):
        shell.call("ls", MODELCACHE_TRACEBACK="1")
