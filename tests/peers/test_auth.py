"""What the settings of the peer plane allow, tokens that change, and TLS that is renewed."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from modelcache.config import PeerSettings
from modelcache.config.tokens import TokenFile
from modelcache.errors import Forbidden, InvalidConfig, NoCredentials
from modelcache.peers.auth import LOOK_EVERY_S, PeerAuth
from modelcache.peers.signing import Scope, answer_to
from modelcache.peers.tls import PeerTls
from tests.peers.support import TOKEN
from tests.servers.certificates import Authority, Certificates

SCOPE = Scope("GET", "/v1/blobs/x", "node-1", "node-2")
NEXT = "the token after that one: longer"


def with_files(certificates: Certificates, **more: Any) -> PeerSettings:
    return PeerSettings(
        listen="0.0.0.0:0",
        cert_file=str(certificates.cert_file),
        key_file=str(certificates.key_file),
        ca_file=str(certificates.ca_file),
        **more,
    )


# Settings


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "127.8.8.8:9871"])
def test_on_loopback_nothing_need_be_proven(listen: str):
    auth = PeerAuth.of(PeerSettings(listen=listen))
    assert auth.admit(SCOPE, {}) is None
    assert auth.sign(SCOPE) == ()
    assert auth.answered(SCOPE, {}, "anything")


@pytest.mark.parametrize("listen", ["0.0.0.0:9871", "[::]:9871", "10.0.0.1:9871", "node-1:9871"])
def test_an_open_peer_plane_must_be_asked_for(listen: str):
    with pytest.raises(InvalidConfig, match=r"peers\.token_file.*peers\.insecure"):
        PeerAuth.of(PeerSettings(listen=listen))
    assert PeerAuth.of(PeerSettings(listen=listen, insecure=True)).tls is None


def test_a_token_or_certificates_secure_all_addresses(token_file: Path, authority: Authority):
    everywhere = "0.0.0.0:9871"
    assert PeerAuth.of(PeerSettings(listen=everywhere, token_file=str(token_file))).sign(SCOPE)
    assert PeerAuth.of(with_files(authority.issue_peer("a"))).tls is not None


@pytest.mark.parametrize("missing", ["cert_file", "key_file", "ca_file"])
def test_half_of_tls_is_none(authority: Authority, missing: str):
    settings = replace(with_files(authority.issue_peer("a")), **{missing: ""})
    with pytest.raises(InvalidConfig, match="belong together"):
        PeerAuth.of(replace(settings, insecure=True))


def test_names_without_certificates_are_a_mistake():
    with pytest.raises(InvalidConfig, match="allowed_names"):
        PeerAuth.of(PeerSettings(allowed_names=("a",)))


def test_files_that_are_not_there_or_hold_nonsense_are_named(tmp_path: Path, authority: Authority):
    settings = with_files(authority.issue_peer("a"))
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("-----BEGIN")
    with pytest.raises(InvalidConfig, match="do not make a certificate"):
        PeerAuth.of(replace(settings, cert_file=str(nonsense)))
    with pytest.raises(InvalidConfig, match="absent"):
        PeerAuth.of(replace(settings, key_file=str(tmp_path / "absent")))
    with pytest.raises(InvalidConfig, match=r"peers\.token_file.*absent"):
        PeerAuth.of(PeerSettings(token_file=str(tmp_path / "absent")))


@pytest.mark.parametrize("content", [b"", b"short", b" " * 100, b"x" * 5000])
def test_a_token_must_be_long_enough_to_be_one(tmp_path: Path, content: bytes):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match="openssl rand") as caught:
        PeerAuth.of(PeerSettings(token_file=str(path)))
    assert b"short" not in content or "short" not in caught.value.message


# Tokens


def test_requests_are_signed_and_answers_too(token_file: Path):
    auth = PeerAuth.of(PeerSettings(token_file=str(token_file)))
    fields = {name.lower(): value for name, value in auth.sign(SCOPE)}
    signed = auth.admit(SCOPE, fields)
    said = answer_to(206, content_range="bytes 0-1/2")
    answer = {name.lower(): value for name, value in auth.sign_answer(signed, said)}
    assert auth.answered(SCOPE, answer, said)
    assert not auth.answered(SCOPE, {}, said)
    assert not auth.answered(SCOPE, answer, answer_to(206, content_range="bytes 0-2/2"))
    with pytest.raises(NoCredentials):
        auth.admit(SCOPE, {})
    with pytest.raises(Forbidden):
        auth.admit(replace(SCOPE, node="node-2"), fields)
    assert TOKEN not in str(fields) + str(answer) + repr(auth)


@pytest.mark.parametrize(("grace_s", "good_for_s"), [(600.0, 300.0), (60.0, 60.0), (0.0, 0.0)])
def test_signed_requests_are_not_repeated_longer_than_tokens_are_good(
    token_file: Path, grace_s: float, good_for_s: float
):
    settings = PeerSettings(token_file=str(token_file), token_grace_s=grace_s)
    assert PeerAuth.of(settings).good_for_s == good_for_s
    assert PeerAuth.of(PeerSettings()).good_for_s > 3600


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def tokens_of(path: Path, grace_s: float, clock: Clock) -> TokenFile:
    more = {"grace_s": grace_s, "look_every_s": LOOK_EVERY_S, "now_s": clock}
    return TokenFile(str(path), "peers.token_file", **more)


def test_a_changed_token_is_used_at_once_and_the_one_before_a_while_longer(token_file: Path):
    clock = Clock()
    file = tokens_of(token_file, 60.0, clock)
    assert file.current() == (TOKEN.encode(),)
    token_file.write_text(NEXT)
    clock.now_s += LOOK_EVERY_S
    assert file.current() == (NEXT.encode(), TOKEN.encode())
    clock.now_s += 59
    assert file.current() == (NEXT.encode(), TOKEN.encode())
    clock.now_s += 2
    assert file.current() == (NEXT.encode(),)


def test_without_grace_the_token_before_is_void_at_once(token_file: Path):
    clock = Clock()
    file = tokens_of(token_file, 0.0, clock)
    token_file.write_text(NEXT)
    clock.now_s += LOOK_EVERY_S
    assert file.current() == (NEXT.encode(),)


def test_a_token_behind_a_link_is_followed(tmp_path: Path, token_file: Path):
    second = tmp_path / "second"
    second.write_text(NEXT)
    link = tmp_path / "link"
    link.symlink_to(token_file)
    clock = Clock()
    file = tokens_of(link, 60.0, clock)
    swap(link, second)
    clock.now_s += LOOK_EVERY_S
    assert file.current()[0] == NEXT.encode()


def test_a_token_file_that_is_gone_or_empty_changes_nothing(token_file: Path):
    clock = Clock()
    file = tokens_of(token_file, 60.0, clock)
    token_file.write_text("")
    clock.now_s += LOOK_EVERY_S
    assert file.current() == (TOKEN.encode(),)
    token_file.unlink()
    clock.now_s += LOOK_EVERY_S
    assert file.current() == (TOKEN.encode(),)
    token_file.write_text(NEXT)
    clock.now_s += LOOK_EVERY_S
    assert file.current() == (NEXT.encode(), TOKEN.encode())


def swap(link: Path, target: Path) -> None:
    """What the kubelet does: another link takes the place of the old one."""
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


# Certificates


def common_name(context: ssl.SSLContext) -> str:
    """Of the certificate that a context shows; it shows it to itself."""
    inner, outer = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(inner, outer, server_side=True)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    client = asking.wrap_bio(there, back)
    for _ in range(4):
        for side, taken, given in ((client, back, inner), (server, outer, there)):
            with suppress(ssl.SSLError):  # the server wants a certificate too, at last
                side.do_handshake()
            given.write(taken.read())
    der = client.getpeercert(binary_form=True)
    assert der is not None
    pem = ssl.DER_cert_to_PEM_cert(der)
    return x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()


def tls_of(certificates: Certificates, **more: Any) -> PeerTls:
    files = (certificates.cert_file, certificates.key_file, certificates.ca_file)
    return PeerTls(*map(str, files), **more)


def test_renewed_certificates_are_used_by_the_next_connection(tmp_path: Path, authority: Authority):
    first, second = authority.issue_peer("first", "one"), authority.issue_peer("second", "two")
    folders = []
    for each in (first, second):
        folder = tmp_path / each.cert_file.stem
        folder.mkdir()
        (folder / "crt").write_bytes(each.cert_file.read_bytes())
        (folder / "key").write_bytes(each.key_file.read_bytes())
        folders.append(folder)
    link = tmp_path / "current"
    link.symlink_to(folders[0])
    tls = PeerTls(str(link / "crt"), str(link / "key"), str(authority.ca_file))
    context = tls.server_context()
    assert common_name(context) == "CN=one"
    assert tls.server_context() is context
    swap(link, folders[1])
    assert common_name(tls.server_context()) == "CN=two"
    assert tls.client_context() is not None


def test_a_certificate_beside_another_ones_key_is_not_used(tmp_path: Path, authority: Authority):
    first, second = authority.issue_peer("first", "one"), authority.issue_peer("second", "two")
    cert, key = tmp_path / "crt", tmp_path / "key"
    cert.write_bytes(first.cert_file.read_bytes())
    key.write_bytes(first.key_file.read_bytes())
    tls = PeerTls(str(cert), str(key), str(authority.ca_file))
    cert.write_bytes(second.cert_file.read_bytes())
    assert common_name(tls.server_context()) == "CN=one"
    key.write_bytes(second.key_file.read_bytes())
    assert common_name(tls.server_context()) == "CN=two"
    cert.unlink()
    assert common_name(tls.server_context()) == "CN=two"


def test_names_of_every_kind_can_be_allowed(authority: Authority):
    tls = tls_of(authority.issue_peer("a"), allowed_names=("node-1", "spiffe://x/agent"))
    tls.check_client({"subject": ((("commonName", "node-1"),),)})
    tls.check_client({"subjectAltName": (("URI", "spiffe://x/agent"),)})
    for certificate in (
        None,
        {},
        {"subject": ((("organizationName", "node-1"),),)},
        {"subjectAltName": (("DNS", "node-10"), ("DNS", "*"))},
    ):
        with pytest.raises(Forbidden, match="allowed_names"):
            tls.check_client(certificate)
