"""Certificates of our own making: an authority, what it signs, and when both are made anew.

    authority  |=========== 2/3 ===========> next one; the old one stays trusted until it ends
    serving    |= 2/3 => next, signed by the newest authority

A new authority signs nothing in the step in which it is made: it is to be trusted by the API
server first. As its predecessor lives on for months and a serving certificate for weeks, nobody
needs to hurry. Pure, but for making keys: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelcache.faces.webhook.tls import Pair

AUTHORITY_LIFE: Final = timedelta(days=365)
SERVING_LIFE: Final = timedelta(days=30)
CLOCKS_APART: Final = timedelta(hours=1)  # of this machine and the API server's
NAME: Final = "modelcache webhook"
COMMON_NAME_MAX: Final = 64  # RFC 5280


@dataclass(frozen=True, slots=True)
class Kept:
    """All that replicas share. before: the authority's predecessor, PEM, or empty."""

    authority: Pair
    serving: Pair
    before: bytes = b""

    def bundle(self, now: datetime) -> bytes:
        """Whom the API server is to trust: PEM, the newest first."""
        before = self.before if self.before and not _over(_parsed(self.before), now) else b""
        return self.authority.certificate + before


def renewed(kept: Kept | None, hosts: Sequence[str], now: datetime) -> Kept:
    """The same where nothing is due, else the next step; everything anew where nothing serves.

    hosts: names and addresses under which the webhook is called.
    """
    if kept is None or not _usable(kept) or _over(_parsed(kept.authority.certificate), now):
        authority = _new_authority(now)
        return Kept(authority, _issue(authority, hosts, now))
    serves = _serves(kept, hosts, now)
    if _due(_parsed(kept.authority.certificate), now):
        kept = Kept(_new_authority(now), kept.serving, before=kept.authority.certificate)
        if serves:
            return kept
    elif serves and not _due(_parsed(kept.serving.certificate), now):
        return kept
    return Kept(kept.authority, _issue(kept.authority, hosts, now), kept.before)


def _usable(kept: Kept) -> bool:
    try:
        if kept.before:
            _parsed(kept.before)
        return all(
            _key(pair).public_key() == _parsed(pair.certificate).public_key()
            for pair in (kept.authority, kept.serving)
        )
    except (ValueError, TypeError):
        return False


def _serves(kept: Kept, hosts: Sequence[str], now: datetime) -> bool:
    """Whether what is shown is believed, and has the right names."""
    serving = _parsed(kept.serving.certificate)
    try:
        names = serving.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if _over(serving, now) or set(names) != set(_names(hosts)):
        return False
    return any(
        _signed(serving, _parsed(pem)) for pem in (kept.authority.certificate, kept.before) if pem
    )


def _signed(serving: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        serving.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _new_authority(now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{NAME} authority")])
    builder = (
        _builder(key, now, AUTHORITY_LIFE)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def _issue(authority: Pair, hosts: Sequence[str], now: datetime) -> Pair:
    signer, signer_key = _parsed(authority.certificate), _key(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:COMMON_NAME_MAX])])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key())
    builder = (
        _builder(key, now, SERVING_LIFE)
        .subject_name(name)
        .issuer_name(signer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(identifier, critical=False)
    )
    return _pair(builder.sign(signer_key, hashes.SHA256()), key)


def _builder(
    key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    return [_name(host) for host in dict.fromkeys(hosts)]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of ours")
    return key


def _over(certificate: x509.Certificate, now: datetime) -> bool:
    return now >= certificate.not_valid_after_utc


def _due(certificate: x509.Certificate, now: datetime) -> bool:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= start + (end - start) * 2 / 3
