"""Certificates that change under a server that goes on."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

import pytest

from modelcache.errors import InvalidConfig
from modelcache.faces.webhook import tls
from modelcache.faces.webhook.rotation import renewed
from modelcache.faces.webhook.tls import CertificateFiles, LiveContext, Pair
from tests.faces.webhook.servers import hook
from tests.servers.certificates import Certificates, make_certificates


def files(made: Certificates) -> CertificateFiles:
    return CertificateFiles(made.cert_file, made.key_file)


def wait_until(look) -> None:
    until_s = monotonic() + 20
    while not look():
        assert monotonic() < until_s
        sleep(0.02)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tls.keep_fresh.__kwdefaults__, "every_s", 0.05)


def test_files_that_are_replaced_are_shown_to_new_connections(tmp_path: Path):
    # As kubelet shows a Secret: a link to a folder, changed in one step.
    first, second = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
    now = tmp_path / "now"
    now.symlink_to(tmp_path / "1")
    source = CertificateFiles(now / first.cert_file.name, now / first.key_file.name)
    with hook(source) as running:
        old = running.shown(trusting=first.ca_file.read_text())
        (tmp_path / "next").symlink_to(tmp_path / "2")
        (tmp_path / "next").rename(now)
        wait_until(lambda: running.log.named("certificate_changed"))
        with running.shown(trusting=second.ca_file.read_text()):
            pass
        with pytest.raises(ssl.SSLError):
            running.shown(trusting=first.ca_file.read_text())
        with old:  # what is open goes on
            old.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert old.recv(100).startswith(b"HTTP/1.1 200")


def test_files_that_do_not_fit_change_nothing(tmp_path: Path):
    good, other = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
    with hook(files(good)) as running:
        good.key_file.write_bytes(other.key_file.read_bytes())
        wait_until(lambda: running.log.named("certificate_not_renewed"))
        with running.shown(trusting=good.ca_file.read_text()):
            pass
        good.key_file.unlink()
        wait_until(
            lambda: any(
                "cannot read" in told["message"]
                for told in running.log.named("certificate_not_renewed")
            )
        )
        with running.shown(trusting=good.ca_file.read_text()):
            pass


class Buggy(CertificateFiles):
    """Once."""

    bugs = 1

    def current(self) -> Pair:
        if self.bugs == 0:
            self.bugs = 1
            raise ZeroDivisionError
        return super().current()


def test_a_bug_does_not_end_the_looking(tmp_path: Path):
    made = make_certificates(tmp_path / "1")
    source = Buggy(made.cert_file, made.key_file)
    with hook(source) as running:
        source.bugs = 0
        wait_until(lambda: running.log.named("certificate_check_failed"))
        made = make_certificates(tmp_path / "1")
        wait_until(lambda: running.log.named("certificate_changed"))


def test_the_same_again_is_no_change(certificates: Certificates):
    pair = files(certificates).current()
    live = LiveContext(pair)
    assert not live.use(pair)


def test_what_cannot_serve_is_refused(certificates: Certificates, tmp_path: Path):
    good = files(certificates).current()
    other = renewed(None, ("x",), datetime.now(UTC)).serving
    for pair in (
        Pair(b"", b""),
        Pair(good.certificate, b"x"),
        Pair(b"x", good.key),
        Pair(good.certificate, other.key),
    ):
        with pytest.raises(InvalidConfig, match="not usable"):
            LiveContext(pair)
    with pytest.raises(InvalidConfig, match=r"cannot read .*nowhere"):
        CertificateFiles(tmp_path / "nowhere", certificates.key_file).current()


def test_a_key_with_a_password_is_refused_without_asking(certificates: Certificates):
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    good = files(certificates).current()
    locked = serialization.load_pem_private_key(good.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    with pytest.raises(InvalidConfig, match="password"):
        LiveContext(Pair(good.certificate, locked))
