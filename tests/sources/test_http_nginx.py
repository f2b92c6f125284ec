"""The http source against nginx: its indexes, its validators, its redirects, TLS."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.config import HttpSettings, Settings, TransferSettings
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.refs import parse_ref
from modelcache.errors import OriginChanged, UnsafePath
from modelcache.sources.http import HttpSource
from modelcache.sources.source import HttpTarget
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.models import write_model
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable

REDIRECTING = "location /latest/ { rewrite ^/latest/(.*)$ /model/$1 redirect; }"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    write_model(root / "model", 24 << 20, shards=1)
    (root / "model/original").mkdir()
    (root / "model/original/é #?%.txt").write_text("note")
    return root


@contextmanager
def serving(root: Path, tls: Certificates | None = None) -> Iterator[Nginx]:
    try:
        server = Nginx(root, tls, REDIRECTING)
    except ServerUnavailable as error:
        pytest.skip(str(error))
    with server as running:
        yield running


@pytest.fixture
def nginx(root: Path) -> Iterator[Nginx]:
    with serving(root) as running:
        yield running


def opened(url: str, ca_file: str = "") -> tuple[HttpSource, Manifest]:
    ref = parse_ref(url)
    source = HttpSource(ref.origin(), HttpSettings(ca_file=ca_file), TransferSettings())
    return source, source.resolve(ref)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(target: HttpTarget, byte_range: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
    try:
        headers = {**dict(target.headers), "Range": byte_range}
        connection.request("GET", target.path, headers=headers)
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    return response


def largest(manifest: Manifest) -> File:
    return max(manifest.files, key=lambda file: file.size_bytes)


def test_a_directory_is_listed_whole(nginx, root):
    _, manifest = opened(f"{nginx.url}/model/")
    sizes = {name: len(content) for name, content in tree(root / "model").items()}
    assert {file.path: file.size_bytes for file in manifest.files} == sizes
    assert largest(manifest).pin.etag
    assert largest(manifest).ranges


def test_a_pull_brings_every_byte(nginx, root, tmp_path):
    engine = Engine(Settings().with_store(tmp_path / "store"))
    assert tree(engine.pull(parse_ref(f"{nginx.url}/model/")).path) == tree(root / "model")
    again = engine.pull(parse_ref(f"{nginx.url}/model/"))
    assert again.fetched_bytes == 0


def test_files_behind_a_redirect_are_read_where_it_leads(nginx, root, tmp_path):
    url = f"{nginx.url}/latest/config.json"
    engine = Engine(Settings().with_store(tmp_path / "store"))
    content = (engine.pull(parse_ref(url)).path / "config.json").read_bytes()
    assert content == (root / "model/config.json").read_bytes()


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00001.safetensors"])
def test_nginx_refuses_a_changed_file_and_so_do_we(nginx, root, name):
    source, manifest = opened(f"{nginx.url}/model/")
    file = next(file for file in manifest.files if file.path == name)
    target = source.locate(file)
    before = read(target, "bytes=0-9")
    assert before.status == 206
    source.check_pin(file, {key.lower(): value for key, value in before.getheaders()})
    path = root / "model" / name
    os.utime(path, (2_000_000_000, 2_000_000_000))  # later than the pinned date
    after = read(target, "bytes=0-9")
    assert after.status == 412
    assert isinstance(source.refusal(file, 412, {}, b""), OriginChanged)
    with pytest.raises(OriginChanged):
        source.locate(file, fresh=True)


def test_excluded_directories_are_not_asked_for(nginx, root):
    (root / "model/original/loop").symlink_to("..")
    _, manifest = opened(f"{nginx.url}/model/#exclude=original/*")
    assert "config.json" in [file.path for file in manifest.files]


def test_a_link_that_leads_up_does_not_make_the_model_endless(nginx, root):
    (root / "model/original/loop").symlink_to("..")
    with pytest.raises(UnsafePath, match="nested deeper"):
        opened(f"{nginx.url}/model/")


def test_a_file_of_our_own_index_may_lie_anywhere_on_the_server(nginx, root):
    (root / "indexes").mkdir()
    entries = [{"path": "renamed.json", "url": "../model/config.json"}]
    (root / "indexes/m.json").write_text(json.dumps({"files": entries}))
    _, manifest = opened(f"{nginx.url}/indexes/m.json#index=1")
    assert manifest.files[0].key == f"{nginx.url}/model/config.json"
    assert manifest.files[0].size_bytes == (root / "model/config.json").stat().st_size


def test_ten_thousand_small_files_resolve_with_one_request(nginx, root):
    many = root / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"{number:05d}").touch()
    source, manifest = opened(f"{nginx.url}/many/")
    assert len(manifest.files) == 10_000
    assert source.locate(manifest.files[-1]).path == "/many/09999"


def test_tls_with_an_authority_of_ones_own(root, tmp_path):
    certificates = make_certificates(tmp_path / "tls")
    with serving(root, certificates) as secure:
        settings = Settings(http=HttpSettings(ca_file=str(certificates.ca_file)))
        engine = Engine(settings.with_store(tmp_path / "store"))
        path = engine.pull(parse_ref(f"{secure.url}/model/#include=*.json")).path
    assert (path / "config.json").read_bytes() == (root / "model/config.json").read_bytes()
