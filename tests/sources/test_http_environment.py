"""Credentials, proxies and certificates: who may see what, and what the environment changes."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.config import HttpSettings, TransferSettings
from modelcache.domain.refs import parse_ref
from modelcache.errors import Forbidden, InvalidConfig, SourceRefused, SourceUnavailable
from modelcache.sources.http import HttpSource
from modelcache.sources.source import HttpTarget, ProxyAddress
from modelcache.sources.web import asking
from tests.sources.scripted import Reply, ScriptedServer, StaticFile, redirect

SECRET = "Bearer hunter2"  # noqa: S105 - made up
FILE = StaticFile(b"abc", {"ETag": '"v1"'})


@pytest.fixture(autouse=True)
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(asking, "BACKOFF_S", 0.0)
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        running.answers["/x"] = FILE
        yield running


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        running.answers["/x"] = FILE
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    key, both = folder / "key.pem", folder / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(both)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    both.write_text(both.read_text() + key.read_text())
    return both


@pytest.fixture
def secure(certificate: Path) -> Iterator[ScriptedServer]:
    with ScriptedServer(certificate) as running:
        running.answers["/x"] = FILE
        yield running


def open_at(url: str, *headers: str, ca_file: Path | None = None) -> tuple[HttpSource, HttpTarget]:
    """Resolve one file, and say where it would be read."""
    settings = HttpSettings(headers=headers, ca_file=str(ca_file or ""))
    source = HttpSource(parse_ref(url).origin(), settings, TransferSettings())
    (file, *_) = source.resolve(parse_ref(url)).files
    return source, source.locate(file)


def test_extra_headers_go_to_the_refs_own_host(server):
    _, target = open_at(server.url("/x"), f"Authorization: {SECRET}", "X-Team: weights")
    assert server.asked[0].headers["authorization"] == SECRET
    assert server.asked[0].headers["x-team"] == "weights"
    assert ("Authorization", SECRET) in target.headers
    assert "hunter2" not in repr(target)


@pytest.mark.parametrize(
    ("hosts", "sent"),
    [(("127.0.0.1",), True), (("127.0.0.*:*",), True), (("*.corp.example",), False)],
)
def test_extra_headers_go_to_the_hosts_that_are_named(server, hosts, sent):
    settings = HttpSettings(headers=("X-Team: weights",), hosts=hosts)
    ref = parse_ref(server.url("/x"))
    HttpSource(ref.origin(), settings, TransferSettings()).resolve(ref)
    assert ("x-team" in server.asked[0].headers) is sent


def test_credentials_never_follow_a_redirect_to_another_host(server, other, netrc):
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    server.answers["/moved"] = redirect(other.url("/x", host="localhost"))
    server.answers["/port"] = redirect(other.url("/x"))
    for path in ("/moved", "/port"):
        _, target = open_at(server.url(path), "X-Secret: hunter2")
        assert "hunter2" not in str(target.headers)
    assert len(other.asked) == 2
    for asked in other.asked:
        assert not {"authorization", "x-secret"} & set(asked.headers)
    assert server.asked[0].headers["x-secret"] == "hunter2"


def test_credentials_never_go_where_an_index_points(server, other):
    files = [{"path": "x", "size": 3, "sha256": "ab" * 32, "url": other.url("/x")}]
    server.answers["/"] = lambda _: Reply(200, body=json.dumps({"files": files}).encode())
    _, target = open_at(server.url("/"), "X-Secret: hunter2")
    assert target.port == other.port
    assert "hunter2" not in str(target.headers)


def test_netrc_gives_basic_credentials(server, netrc):
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    open_at(server.url("/x"))
    sent = server.asked[0].headers["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"me:hunter2"


def test_netrc_of_another_host_is_not_used(server, netrc):
    netrc.write_text("machine example.org login me password hunter2\n")
    open_at(server.url("/x"))
    assert "authorization" not in server.asked[0].headers


def test_a_header_of_the_settings_wins_over_netrc(server, netrc):
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    open_at(server.url("/x"), f"Authorization: {SECRET}")
    assert server.asked[0].headers["authorization"] == SECRET


def test_refused_credentials_are_said_to_be_refused(server):
    server.answers["/x"] = lambda _: Reply(401)
    with pytest.raises(Forbidden, match="does not accept"):
        open_at(server.url("/x"), f"Authorization: {SECRET}")


def test_a_broken_netrc_is_named_without_its_text(server, netrc):
    netrc.write_text("machine 127.0.0.1 login me\npassword hunter2 nonsense hunter2\n")
    with pytest.raises(InvalidConfig) as caught:
        open_at(server.url("/x"))
    assert "line 2" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "header",
    [
        "hunter2",
        "X Y: hunter2",
        ": hunter2",
        "X: a\r\nY: hunter2",
        "X: é hunter2",
        "Range: hunter2",
        "host: hunter2",
        "If-Match: hunter2",
    ],
)
def test_a_header_that_cannot_be_sent_is_an_error_without_its_value(header):
    with pytest.raises(InvalidConfig, match=r"http\.headers") as caught:
        HttpSource(parse_ref("https://host/x"), HttpSettings(headers=(header,)), TransferSettings())
    assert "hunter2" not in caught.value.message


# Proxies


def test_plain_requests_go_through_http_proxy(server, monkeypatch):
    with ScriptedServer() as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:hunter2@127.0.0.1:{proxy.port}")
        proxy.answers["/x"] = FILE
        _, target = open_at(server.url("/x"))
    assert not server.asked
    assert proxy.asked[0].path == server.url("/x")  # the absolute form
    assert proxy.asked[0].headers["host"] == f"127.0.0.1:{server.port}"
    sent = proxy.asked[0].headers["proxy-authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"me:hunter2"
    assert target.proxy == ProxyAddress("127.0.0.1", proxy.port, sent)
    assert "hunter2" not in repr(target)
    assert sent not in repr(target)


@pytest.mark.parametrize("bypass", ["127.0.0.1", "*", "10.0.0.1, 127.0.0.1"])
def test_no_proxy_is_honoured(server, monkeypatch, bypass):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", bypass)
    _, target = open_at(server.url("/x"))
    assert target.proxy is None


def test_no_proxy_may_name_a_port(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", f"127.0.0.1:{server.port}")
    _, target = open_at(server.url("/x"))
    assert target.proxy is None


def test_tls_goes_through_a_tunnel_of_https_proxy(secure, certificate, monkeypatch):
    with ScriptedServer() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        _, target = open_at(secure.url("/x", "localhost"), "X-Secret: hunter2", ca_file=certificate)
    assert proxy.tunnels[0].path == f"localhost:{secure.port}"
    assert "x-secret" not in proxy.tunnels[0].headers
    assert secure.asked[0].headers["x-secret"] == "hunter2"
    assert target.proxy == ProxyAddress("127.0.0.1", proxy.port)
    assert target.tls


@pytest.mark.parametrize(("status", "kind"), [(403, SourceRefused), (502, SourceUnavailable)])
def test_a_refused_tunnel_says_so(secure, certificate, monkeypatch, status, kind):
    with ScriptedServer() as proxy:
        proxy.answers["CONNECT"] = lambda _: Reply(status)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(kind, match="proxy"):
            open_at(secure.url("/x"), ca_file=certificate)


@pytest.mark.parametrize(
    "address",
    ["socks5://hunter2@host:1080", "https://hunter2@host", "http://hunter2@", "http://h:hunter2"],
)
def test_a_proxy_that_cannot_be_used_is_an_error_without_its_text(server, monkeypatch, address):
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(InvalidConfig) as caught:
        open_at(server.url("/x"))
    assert "http_proxy" in caught.value.message
    assert "hunter2" not in caught.value.message


# Certificates


def test_a_trusted_certificate_is_accepted(secure, certificate):
    _, target = open_at(secure.url("/x"), ca_file=certificate)
    assert target.ca_file == str(certificate)


def test_an_unknown_certificate_is_refused_with_the_remedy(secure):
    with pytest.raises(SourceRefused, match="ca_file"):
        open_at(secure.url("/x"))


def test_a_bundle_that_cannot_be_read_is_named(secure, tmp_path):
    with pytest.raises(SourceRefused, match="nothing"):
        open_at(secure.url("/x"), ca_file=tmp_path / "nothing.pem")
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(SourceRefused, match="empty"):
        open_at(secure.url("/x"), ca_file=tmp_path / "empty.pem")


def test_a_redirect_out_of_tls_is_refused(secure, server, certificate):
    secure.answers["/down"] = redirect(server.url("/x"))
    with pytest.raises(SourceRefused, match="https to http"):
        open_at(secure.url("/down"), ca_file=certificate)
    assert not server.asked


def test_a_redirect_into_tls_is_followed(secure, server, certificate):
    server.answers["/up"] = redirect(secure.url("/x"))
    _, target = open_at(server.url("/up"), ca_file=certificate)
    assert target.tls
