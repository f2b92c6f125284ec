"""What cannot be is said in one line, with the exit code that tells whose turn it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.main.support import Shell
from tests.servers.faults import Fault, FaultProxy
from tests.servers.minio import Minio
from tests.servers.process import free_port
from tests.servers.uploads import s3_client, upload_tree

SECRET = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("llama", "has no scheme"),
        ("/models/llama", "write file:///models/llama"),
        ("", "has no scheme"),
        ("abfs://bucket/m", "unknown scheme 'abfs'"),
        ("gs://", "no bucket"),
        ("oci://registry/Llama:8b", "lower case"),
        ("oci://registry/llama@sha256:12", "is not an OCI name"),
        ("oci://n/space/b/bucket/o/llama", "Oracle Object Storage"),
        ("oci://reg istry/llama", "is not a registry"),
        ("hf://-org/name", "is not a repository"),
        ("s3://", "no bucket"),
        ("s3://b/m", "not a valid bucket name"),
        ("s3://bucket/m?regoin=x", "unknown option 'regoin'"),
        ("https://", "no host"),
        ("file://models", "three slashes"),
    ],
)
def test_a_ref_that_cannot_be_is_a_usage_error(shell: Shell, ref: str, words: str):
    done = shell.call("pull", ref)
    assert (done.code, done.out) == (2, "")
    assert words in done.complaint
    assert not shell.store.exists()


def test_json_has_the_error_too(shell: Shell):
    done = shell.run("pull", "abfs://bucket/m", "--json")
    assert (done.code, done.err) == (2, "")
    assert done.json["error"]["code"] == "invalid_ref"
    assert "unknown scheme" in done.json["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [("fetch",), ("pull",), ("ls", "extra"), ("pull", "--connections", "many", "file:///m")],
)
def test_a_command_line_that_does_not_parse_says_how_to_get_help(shell: Shell, arguments):
    done = shell.run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "-h` helps" in done.complaint


def test_json_has_the_misspelt_option_too(shell: Shell):
    done = shell.run("pull", "file:///m", "--json", "--conections", "4")
    assert (done.code, done.err) == (2, "")
    assert done.json["error"]["code"] == "usage"
    assert "--conections" in done.json["error"]["message"]


def test_no_command_at_all_shows_the_commands(shell: Shell):
    done = shell.run()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: modelcache")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--limit-rate", "10x"), "'10x' is not a size"),
        (("--max-age", "soon"), "'soon' is not a duration"),
        (("--io", "fast"), "--io: 'fast' is none of direct, buffered, auto"),
        (("--link", "symlink"), "--link: 'symlink' is none of reflink, hardlink, copy"),
        (("--connections", "0"), "--connections must be at least 1"),
        (("--retries", "-1"), "--retries must not be negative"),
    ],
)
def test_an_option_with_an_impossible_value_is_a_usage_error(shell: Shell, options, words: str):
    done = shell.call("pull", "file:///m", *options)
    assert done.code == 2
    assert words in done.complaint


def test_gc_wants_a_duration(shell: Shell):
    done = shell.call("gc", "--partial-older-than", "old")
    assert done.code == 2
    assert "'old' is not a duration" in done.complaint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[store", "not valid TOML"),
        ("[stroe]\npath = '/x'", "unknown setting 'stroe'"),
        ("[store]\npaht = '/x'", "unknown setting 'paht'"),
        ("[store]\npath = 5", "expected text, found int"),
        ("[transfer]\nretries_max = 'ten'", "'ten' is not a size"),
        ("store = 5", "must be a table"),
    ],
)
def test_a_configuration_that_cannot_be_names_file_and_setting(
    shell: Shell, tmp_path: Path, text: str, words: str
):
    file = tmp_path / "config.toml"
    file.write_text(text)
    for done in (shell.call("ls", "--config", file), shell.call("ls", MODELCACHE_CONFIG=str(file))):
        assert done.code == 2
        assert str(file) in done.complaint
        assert words in done.complaint


def test_a_configuration_that_is_not_there_is_named(shell: Shell):
    done = shell.call("ls", "--config", "/nonexistent.toml")
    assert done.code == 2
    assert "/nonexistent.toml" in done.complaint


def test_a_bad_environment_variable_is_named(shell: Shell):
    done = shell.call("ls", MODELCACHE_TRANSFER_CONNECTIONS_MAX="lots")
    assert done.code == 2
    assert "environment" in done.complaint
    assert "transfer.connections_max" in done.complaint


def test_a_file_ref_to_nothing_is_a_failure(shell: Shell, tmp_path: Path):
    done = shell.call("pull", f"file://{tmp_path}/nope")
    assert done.code == 1
    assert f"{tmp_path}/nope does not exist" in done.complaint


def test_a_filter_that_accepts_nothing_is_a_failure(shell: Shell, model: Path):
    done = shell.call("pull", f"file://{model}", "--include", "*.gguf")
    assert done.code == 1
    assert "no file that the ref's filter accepts" in done.complaint


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_an_endpoint_nobody_listens_on_is_named(shell: Shell, scheme: str, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv(SECRET, "y")
    url = f"http://127.0.0.1:{free_port()}"
    ref = f"{url}/m" if scheme == "http" else f"s3://bucket/m?endpoint={url}&region=us-east-1"
    done = shell.call("pull", ref)
    assert done.code == 1
    assert url.removeprefix("http://") in done.complaint


def test_a_host_that_does_not_exist_is_named(shell: Shell):
    done = shell.call("pull", "https://host.invalid/m")
    assert done.code == 1
    assert "host.invalid" in done.complaint


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("s3://no-such-bucket/m", "no-such-bucket"),
        ("s3://cli-bad/nothing-here", "nothing-here"),
        ("s3://cli-bad/m?include=*.gguf", "filter"),
    ],
)
def test_what_is_not_in_s3_is_named(shell: Shell, minio: Minio, model: Path, ref: str, words: str):
    upload_tree(minio, "cli-bad", "m", model)
    done = shell.call("pull", ref, MODELCACHE_S3_ENDPOINT=minio.url)
    assert done.code == 1
    assert words in done.complaint
    answer = shell.call("pull", ref, "--json", MODELCACHE_S3_ENDPOINT=minio.url)
    assert answer.json["error"]["code"] == "not_found"


def test_missing_and_wrong_credentials_are_told_apart(shell: Shell, minio: Minio, monkeypatch):
    client = s3_client(minio)
    client.create_bucket(Bucket="cli-secret")
    client.put_object(Bucket="cli-secret", Key="w.bin", Body=b"x")
    shell.env["MODELCACHE_S3_ENDPOINT"] = minio.url
    wrong = shell.call("pull", "s3://cli-secret/w.bin", **{SECRET: "wrong-secret"})
    assert wrong.code == 1
    assert "credentials" in wrong.complaint.lower()
    assert "wrong-secret" not in wrong.complaint
    anonymous = shell.call("pull", "s3://cli-secret/w.bin?anonymous=1")
    assert anonymous.code == 1
    assert anonymous.complaint
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv(SECRET)
    none = shell.call("pull", "s3://cli-secret/w.bin", "--json")
    assert none.code == 1
    assert none.json["error"]["code"] == "no_credentials"


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (403, "forbidden"), (401, "no_credentials")]
)
def test_what_a_web_server_refuses_is_told_with_the_url(
    shell: Shell, origin: FaultProxy, status: int, code: str
):
    origin.plan = lambda _: Fault(status=status)
    done = shell.call("pull", f"{origin.url}/a.safetensors", "--json")
    assert done.code == 1
    assert json.loads(done.out)["error"]["code"] == code
    assert "a.safetensors" in done.json["error"]["message"]


@pytest.mark.parametrize("command", ["show", "path", "rm", "pin", "unpin", "explain", "verify"])
def test_a_model_that_is_not_here_is_named(shell: Shell, command: str):
    done = shell.call(command, "deadbeef")
    assert done.code == 1
    assert "no model in this store starts with deadbeef" in done.complaint


def test_names_that_are_no_ids_and_starts_of_several_are_usage_errors(shell: Shell, model: Path):
    assert shell.call("pull", f"file://{model}", "-q").code == 0
    for what in ("abc", "llama"):
        done = shell.call("show", what)
        assert done.code == 2
        assert "neither a ref nor a model id" in done.complaint
    (first,) = shell.call("ls", "-q").out.split()
    twin = shell.store / "models" / (first[:8] + "0" * 56)
    twin.mkdir()
    ambiguous = shell.call("show", first[:8])
    assert ambiguous.code == 2
    assert "means 2 models; write more digits" in ambiguous.complaint
    never = shell.call("show", "file:///never/pulled")
    assert never.code == 1
    assert "was not pulled" in never.complaint
