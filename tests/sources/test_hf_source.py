"""hf://: what is listed, how files are pinned and located, and what refusals say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache.config import HfSettings, TransferSettings
from modelcache.domain.manifests import Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    Forbidden,
    InvalidConfig,
    InvalidRef,
    ModelcacheError,
    NoCredentials,
    NotFound,
    OriginChanged,
    SourceRefused,
    SourceUnavailable,
    Throttled,
    UnsafePath,
)
from modelcache.sources.hf import HfSource
from modelcache.sources.source import HttpTarget
from modelcache.sources.web import asking
from tests.main.support import PROGRAM
from tests.servers.hub import Hub
from tests.sources.fetching import read
from tests.sources.scripted import Reply, ScriptedServer

READER = "hf_reader"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "sub/tokenizer.model": b"words",
    "sub/deeper/weights.bin": b"more weights",
}


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)


def opened(
    url: str, rest: str = "", name: str = "org/name", **given: str
) -> tuple[HfSource, Manifest]:
    """A source and what its ref resolves to. rest: `@revision/path?options`."""
    mark = "&" if "?" in rest else "?"
    ref = parse_ref(f"hf://{name}{rest}{mark}endpoint={url}")
    transfer = TransferSettings(connect_timeout_s=5, stall_timeout_s=5)
    source = HfSource(ref.origin(), HfSettings(**given), transfer)
    return source, source.resolve(ref)


def resolve(hub: Hub, rest: str = "", name: str = "org/name", **given: str) -> Manifest:
    return opened(hub.url, rest, name, **given)[1]


def paths(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def refused(hub: Hub, rest: str = "", name: str = "org/name", **given: str) -> ModelcacheError:
    with pytest.raises(ModelcacheError) as caught:
        resolve(hub, rest, name, **given)
    assert "\n" not in caught.value.message
    return caught.value


# Revisions and paths


def test_a_branch_is_pinned_to_its_commit(hub):
    before = hub.repository().commit(FILES)
    source, manifest = opened(hub.url)
    hub.repository().commit({**FILES, "config.json": b"[]"})
    assert all(file.key == f"{before}/{file.path}" for file in manifest.files)
    assert read(source, manifest.files[0]).body == FILES["config.json"]


def test_a_revision_may_be_a_branch_a_tag_a_commit_or_an_option(hub):
    old = hub.repository().commit(FILES)
    hub.repository().commit({"config.json": b"new"})
    hub.repository().refs |= {"v1.0": old, "refs/pr/7": old, "feature/x": old}
    for rest in ("@v1.0", f"@{old}", "@refs/pr/7", "?revision=feature/x"):
        assert paths(resolve(hub, rest)) == sorted(FILES)


def test_a_commit_is_not_asked_what_it_means(hub):
    sha = hub.repository().commit(FILES)
    resolve(hub, f"@{sha}")
    assert not any("/revision/" in asked.path for asked in hub.api.asked)


def test_two_revisions_in_one_ref_are_an_error(hub):
    hub.repository().commit(FILES)
    assert isinstance(refused(hub, "@main?revision=v2"), InvalidRef)


def test_a_folder_gives_paths_relative_to_it(hub):
    hub.repository().commit(FILES)
    for rest in ("@main/sub", "/sub", "/sub/"):
        assert paths(resolve(hub, rest)) == ["deeper/weights.bin", "tokenizer.model"]


def test_a_file_is_named_by_its_last_component(hub):
    hub.repository().commit(FILES)
    source, manifest = opened(hub.url, "/sub/deeper/weights.bin")
    assert paths(manifest) == ["weights.bin"]
    assert read(source, manifest.files[0]).body == b"more weights"


def test_a_listing_of_many_pages_is_read_to_its_end(hub):
    files = {f"part-{number:04}.json": b"%d" % number for number in range(95)}
    hub.page_entries = 10
    hub.repository().commit(files)
    assert paths(resolve(hub)) == sorted(files)


def test_large_files_are_named_by_sha256_and_small_ones_by_content(hub):
    hub.repository("org/one").commit(FILES)
    hub.repository("org/two").commit({**FILES, "more.txt": b"x"})
    one, two = resolve(hub, name="org/one"), resolve(hub, name="org/two")
    blobs = {file.path: file.blob for file in one.files}
    assert blobs["model.safetensors"].startswith("sha256-")
    assert blobs["config.json"].startswith("origin-")
    assert blobs.items() <= {file.path: file.blob for file in two.files}.items()


# Reading


def test_a_small_file_costs_one_request_where_the_hub_serves_it(hub):
    hub.repository().commit(FILES)
    source, manifest = opened(hub.url)
    before = len(hub.api.asked)
    assert read(source, manifest.files[0]).body == FILES["config.json"]
    assert len(hub.api.asked) == before + 1


def test_an_address_is_good_for_as_long_as_its_signature(hub):
    hub.repository().commit(FILES)
    hub.link_good_for_s = 90
    source, manifest = opened(hub.url)
    target = source.locate(manifest.files[1])
    assert isinstance(target, HttpTarget)
    assert target.port == hub.cdn.port
    assert 30 < target.good_for_s <= 60  # a margin is left
    asked = len(hub.api.asked)
    source.locate(manifest.files[1])
    assert len(hub.api.asked) == asked
    source.locate(manifest.files[1], fresh=True)
    assert len(hub.api.asked) == asked + 1


def test_an_address_about_to_expire_is_not_used_again(hub):
    hub.repository().commit(FILES)
    hub.link_good_for_s = 10
    source, manifest = opened(hub.url)
    source.locate(manifest.files[1])
    asked = len(hub.api.asked)
    source.locate(manifest.files[1])
    assert len(hub.api.asked) == asked + 1


def test_a_mirror_that_now_links_other_bytes_is_noticed(hub):
    sha = hub.repository().commit(FILES)
    source, manifest = opened(hub.url)
    hub.repository().commits[sha]["model.safetensors"] = b"swapped"
    with pytest.raises(OriginChanged, match="pull again"):
        source.locate(manifest.files[1])


def test_a_compressed_body_is_refused(hub):
    hub.repository().commit(FILES)
    source, manifest = opened(hub.url)
    with pytest.raises(SourceRefused, match="compressed"):
        source.check_pin(manifest.files[0], {"content-encoding": "gzip"})


# Refusals


def test_a_gated_repository_says_what_to_accept_and_set(hub):
    hub.repository().commit(FILES)
    hub.repository().gated = True
    source, manifest = opened(hub.url)
    with pytest.raises(Forbidden) as caught:
        source.locate(manifest.files[1])
    assert f"accept the conditions at {hub.url}/org/name and set HF_TOKEN" in caught.value.message


def test_a_gated_repository_tells_whose_token_lacks_the_permission(hub, monkeypatch):
    hub.repository().commit(FILES)
    hub.repository().gated = True
    hub.readers = {READER: set()}
    monkeypatch.setenv("HF_TOKEN", READER)
    source, manifest = opened(hub.url)
    with pytest.raises(Forbidden, match="the account whose token was given"):
        source.locate(manifest.files[1])


@pytest.mark.parametrize("private", [True, False])
def test_private_and_missing_look_alike_and_both_are_said(hub, monkeypatch, private):
    if private:
        hub.repository().commit(FILES)
        hub.repository().private = True
    error = refused(hub)
    assert isinstance(error, NotFound)
    assert "does not exist, or is private" in error.message
    assert "HF_TOKEN" in error.message
    hub.readers = {READER: set()}
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token that was given may not read it" in refused(hub).message


def test_a_bad_token_is_said_to_be_one_and_never_shown(hub, monkeypatch):
    hub.repository().commit(FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = refused(hub)
    assert isinstance(error, Forbidden)
    assert "does not accept the token" in error.message
    assert "hf_wrong" not in error.message


def test_a_revision_that_is_not_there_is_named(hub):
    hub.repository().commit(FILES)
    error = refused(hub, "@v9")
    assert isinstance(error, NotFound)
    assert "'v9'" in error.message
    assert "'" + "0" * 40 + "'" in refused(hub, "@" + "0" * 40).message


def test_a_name_that_no_hub_would_take_is_refused_in_one_line(hub):
    assert isinstance(refused(hub, name="org/a--b"), InvalidRef)


def test_a_dataset_is_said_to_be_no_model(hub):
    error = refused(hub, "/name", name="datasets/org")
    assert isinstance(error, InvalidRef)
    assert "datasets" in error.message


def test_a_throttled_hub_is_asked_again_after_a_short_wait(hub):
    hub.repository().commit(FILES)
    hub.throttled = [Reply(429, {"Retry-After": "0"}), Reply(503)]
    assert paths(resolve(hub)) == sorted(FILES)


def test_a_long_wait_is_left_to_the_caller_with_its_length(hub):
    hub.repository().commit(FILES)
    hub.throttled = [Reply(429, {"Retry-After": "250"})]
    error = refused(hub)
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 250
    hub.throttled = [Reply(429, {"RateLimit": '"api";r=0;t=55'})] * 4
    error = refused(hub)
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 55
    assert not hub.throttled


def test_a_hub_that_is_down_is_worth_repeating(hub):
    hub.throttled = [Reply(502)] * 4
    assert isinstance(refused(hub), SourceUnavailable)
    with Hub() as gone:
        url = gone.url
    with pytest.raises(SourceUnavailable):
        opened(url)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to the captive portal</html>",
        b"[]",
        b'"text"',
        b"{}",
        b'{"id": "org/name", "sha": null}',
        b'{"id": "org/name", "sha": "../../etc"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_hub_is_refused_in_one_line(hub, body):
    hub.throttled = [Reply(200, {"Content-Type": "text/html"}, body)]
    error = refused(hub)
    assert isinstance(error, SourceRefused)
    assert "does not answer as a hub does" in error.message


SHA = "a" * 40
ENTRY = {"type": "file", "path": "x.json", "size": 3, "oid": "b" * 40}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"size": "3"},
        {"path": 7},
        {"oid": "short"},
        {"oid": None},
        {"lfs": {"oid": "c" * 40, "size": 3, "pointerSize": 1}},
        {"lfs": {"size": 3}},
        {"lfs": []},
    ],
)
def test_an_entry_that_no_hub_would_list_is_refused(hub, wrong):
    hub.throttled = [Reply(200, {}, json.dumps([ENTRY | wrong]).encode())]
    error = refused(hub, f"@{SHA}")
    assert isinstance(error, SourceRefused)
    assert "does not answer as a hub does" in error.message


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\nb", "a//b"])
def test_an_unsafe_path_is_refused(hub, name):
    hub.throttled = [Reply(200, {}, json.dumps([ENTRY | {"path": name}]).encode())]
    assert isinstance(refused(hub, f"@{SHA}"), UnsafePath)


def test_a_listing_that_leads_elsewhere_takes_no_token_along(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    with ScriptedServer() as other:
        other.answers["/next"] = lambda _: Reply(200, {}, b"[]")
        link = {"Link": f'<{other.url("/next")}>; rel="next"'}
        hub.throttled = [Reply(200, link, json.dumps([ENTRY]).encode())]
        assert paths(resolve(hub, f"@{SHA}")) == ["x.json"]
        assert "authorization" not in other.asked[0].headers
    assert hub.api.asked[0].headers["authorization"] == f"Bearer {READER}"


def test_a_listing_that_never_ends_is_refused(hub, monkeypatch):
    monkeypatch.setattr("modelcache.sources.hf.listing.ENTRIES_MAX", 20)
    hub.page_entries = 10
    hub.repository().commit({f"{number}.json": b"" for number in range(50)})
    error = refused(hub)
    assert isinstance(error, SourceRefused)
    assert "more than 20 files" in error.message
    assert len(hub.api.asked) <= 4


# Which weights


def kept(hub: Hub, names: list[str], rest: str = "") -> list[str]:
    hub.repository().commit({name: name.encode() for name in names})
    return paths(resolve(hub, rest))


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
LLAMA = [
    *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json"),
    *SHARDS,
    *("model.safetensors.index.json", "modeling_llama.py", "tokenizer.json", "tokenizer.model"),
]
DUPLICATES = [
    *("flax_model.msgpack", "original/consolidated.00.pth", "consolidated.00.pth"),
    *("pytorch_model-00001-of-00003.bin", "pytorch_model-00002-of-00003.bin"),
    *("pytorch_model.bin.index.json", "rust_model.ot", "tf_model.h5"),
]
NOT_WEIGHTS = ["original/params.json", "original/tokenizer.model", "training_args.bin"]


def test_weights_that_are_there_twice_are_taken_once_and_it_is_said(hub):
    names = [*LLAMA, *DUPLICATES, *NOT_WEIGHTS]
    assert kept(hub, names) == sorted([*LLAMA, *NOT_WEIGHTS])
    (note,) = resolve(hub).notes
    assert "left out" in note
    assert "more" in note
    assert "all-files=1" in note


def test_all_files_or_an_include_takes_them(hub):
    names = [*LLAMA, *DUPLICATES]
    assert kept(hub, names, "?all-files=1") == sorted(names)
    assert resolve(hub, "?all-files=1").notes == ()
    assert paths(resolve(hub, "?include=*.bin")) == sorted(n for n in names if n.endswith(".bin"))


def test_an_exclude_leaves_the_rest_of_the_choice_as_it_is(hub):
    assert "tf_model.h5" not in kept(hub, [*LLAMA, "tf_model.h5"], "?exclude=*.md")


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "pytorch_model.bin"],
        ["config.json", SHARDS[0], "pytorch_model.bin"],  # an upload that is not complete
        ["model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"],
        ["model.safetensors", "model-Q4_K_M.gguf"],
        ["model.safetensors", "other/pytorch_model.bin"],
        ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"],
        ["consolidated.safetensors", "model.safetensors", "params.json"],
        ["1_Pooling/config.json", "embeddings.bin", "model.safetensors"],
    ],
)
def test_what_may_not_be_the_same_is_kept(hub, names):
    assert kept(hub, names) == sorted(names)
    assert resolve(hub).notes == ()


def test_a_pipelines_folders_are_looked_at_one_by_one(hub):
    names = [
        *("model_index.json", "unet/diffusion_pytorch_model.safetensors"),
        *("unet/diffusion_pytorch_model.bin", "unet/diffusion_flax_model.msgpack"),
        *("vae/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin"),
    ]
    assert kept(hub, names) == [
        "model_index.json",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
    ]


# Settings and environment


def test_a_token_file_comes_before_the_environment(hub, tmp_path, monkeypatch):
    hub.repository().commit(FILES)
    hub.readers = {READER: set()}
    token = tmp_path / "token"
    token.write_text(f"{READER}\n")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    resolve(hub, token_file=str(token))
    assert hub.api.asked[-1].headers["authorization"] == f"Bearer {READER}"


def test_a_token_that_cannot_be_read_or_sent_is_an_error_without_its_text(hub, tmp_path):
    with pytest.raises(NoCredentials, match="absent"):
        resolve(hub, token_file=str(tmp_path / "absent"))
    for text in ("", "two words", "line\nbreak", "schlüssel"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InvalidConfig) as caught:
            resolve(hub, token_file=str(tmp_path / "token"))
        assert not text or text not in caught.value.message


def test_a_hub_that_only_a_ref_names_is_sent_no_token(hub, tmp_path, monkeypatch):
    hub.repository().commit(FILES)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", READER)
    (tmp_path / "token").write_text(READER)
    resolve(hub, token_file=str(tmp_path / "token"))
    assert all("authorization" not in asked.headers for asked in hub.api.asked)
    hub.repository().private = True
    assert "hf.endpoint" in refused(hub).message
    resolve_with_token = {"endpoint": hub.url, "token_file": str(tmp_path / "token")}
    hub.readers = {READER: {"org/name"}}
    assert paths(resolve(hub, **resolve_with_token)) == sorted(FILES)


def test_what_hf_auth_login_stored_is_used(hub, tmp_path):
    hub.repository().commit(FILES)
    hub.readers = {READER: set()}
    (tmp_path / "token").write_text(READER)
    pulled(hub, tmp_path)
    assert hub.api.asked[-1].headers["authorization"] == f"Bearer {READER}"


def test_the_library_offline_is_said_to_be(hub, tmp_path):
    done = pulled(hub, tmp_path, "HF_HUB_OFFLINE", "1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert not hub.api.asked


def pulled(hub: Hub, home: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """`modelcache pull` in a process of its own: the library reads its environment once."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": hub.url}
    env |= dict(zip(extra[::2], extra[1::2], strict=True))
    return subprocess.run(
        [PROGRAM, "pull", "hf://org/name", "-q", "--store", home / "s"],
        env=env,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_endpoint_of_the_ref_comes_before_settings_and_environment(hub, monkeypatch):
    hub.repository().commit(FILES)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    resolve(hub, endpoint="http://127.0.0.1:1")
    ref = parse_ref("hf://org/name")
    settings = HfSettings(endpoint=hub.url)
    assert HfSource(ref, settings, TransferSettings()).resolve(ref).files
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    assert HfSource(ref, HfSettings(), TransferSettings()).resolve(ref).files


def test_an_endpoint_that_is_no_url_is_refused_by_the_name_of_who_gave_it():
    ref = parse_ref("hf://org/name?endpoint=ftp://host")
    with pytest.raises(InvalidRef, match="endpoint"):
        HfSource(ref, HfSettings(), TransferSettings())
    with pytest.raises(InvalidConfig, match=r"hf\.endpoint"):
        HfSource(parse_ref("hf://org/name"), HfSettings(endpoint="host"), TransferSettings())


def test_tls_wants_an_authority_and_says_which_setting_names_it(certificates, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text(certificates.cert_file.read_text() + certificates.key_file.read_text())
    with Hub(both) as hub:
        hub.repository().commit(FILES)
        assert "hf.ca_file" in refused(hub).message
        assert paths(resolve(hub, ca_file=str(certificates.ca_file))) == sorted(FILES)


@pytest.mark.usefixtures("hub")
def test_requests_go_through_the_proxy_of_the_environment(monkeypatch):
    with ScriptedServer() as proxy:
        proxy.answers[f"/api/models/org/name/tree/{SHA}"] = lambda _: Reply(
            200, {}, json.dumps([ENTRY]).encode()
        )
        monkeypatch.setenv("http_proxy", proxy.url())
        source, manifest = opened("http://hub.invalid", f"@{SHA}")
        assert paths(manifest) == ["x.json"]
        target = source.locate(manifest.files[0])
        assert isinstance(target, HttpTarget)
        assert target.proxy is not None
        assert target.proxy.port == proxy.port


def test_who_else_uses_the_library_here_is_left_alone(hub, tmp_path):
    hub.repository().commit(FILES)
    code = f"""
import httpx2, huggingface_hub
from modelcache.config import HfSettings, TransferSettings
from modelcache.domain.refs import parse_ref
from modelcache.sources.hf import HfSource
made = []
def factory():
    made.append(httpx2.Client(headers={{"x-mine": "yes"}}))
    return made[-1]
huggingface_hub.set_client_factory(factory)
ref = parse_ref("hf://org/name?endpoint={hub.url}")
assert HfSource(ref, HfSettings(), TransferSettings()).resolve(ref).files
assert huggingface_hub.HfApi({hub.url!r}).model_info("org/name").sha
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hub.api.asked[-1].headers.get("x-mine") == "yes"
    assert "x-mine" not in hub.api.asked[0].headers
