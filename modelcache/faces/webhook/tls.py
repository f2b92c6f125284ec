"""The certificate that is shown, which changes while connections come and go.

New connections get the new one; those that are open keep what they were opened with. Keys are
given to OpenSSL through memory, never through a file of ours.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from cryptography import x509

from modelcache.errors import InvalidConfig, ModelcacheError
from modelcache.faces.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECK_S: Final = 10.0
"""Between looks at where certificates come from; one look costs two small requests."""
PEM_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate, with its chain, and its key; all PEM.

    authority: who signs what clients have to show; empty where they are not asked.
    """

    certificate: bytes
    key: bytes
    authority: bytes = b""


class Certificates(Protocol):
    """Where the certificate comes from."""

    def current(self) -> Pair:
        """What should be shown now. May block. Raises ModelcacheError; then the last one stays."""
        ...


class Shows(Protocol):
    """What shows a certificate that can change."""

    @property
    def end(self) -> datetime:
        """Of the certificate that is shown."""
        ...

    def use(self, pair: Pair) -> bool:
        """Show this from now on; whether that is something new. Raises InvalidConfig."""
        ...


class CertificateFiles:
    """Files that somebody else replaces, as cert-manager does with a mounted Secret."""

    def __init__(self, certificate: Path, key: Path, authority: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._authority = authority

    def current(self) -> Pair:
        """What they hold. Raises InvalidConfig naming the file."""
        pair = Pair(_read(self._certificate), _read(self._key))
        if self._authority is None:
            return pair
        authority = _read(self._authority)
        if not authority.strip():  # as if no certificate were asked for
            raise InvalidConfig(f"{self._authority} is empty")
        return replace(pair, authority=authority)


class LiveContext:
    """A server's TLS context whose certificate can change. Used from one thread."""

    def __init__(self, pair: Pair) -> None:
        """Raises InvalidConfig where certificate and key are not what they should be."""
        self.context = _empty()
        self.context.set_alpn_protocols(["http/1.1"])
        self._pair: Pair | None = None
        self.end = datetime.min  # noqa: DTZ901 - replaced by the next line
        self.use(pair)

    def use(self, pair: Pair) -> bool:
        """Show this from now on; whether that is something new. Raises InvalidConfig."""
        if pair == self._pair:
            return False
        # A key that does not fit would leave the context with half of it, so it is tried on
        # another one first.
        self.end = check(pair)
        _load(self.context, pair)
        self._pair = pair
        return True


async def keep_fresh(
    source: Certificates,
    live: Shows,
    log: Log,
    *,
    every_s: float = CHECK_S,
    changed: Callable[[], None] = lambda: None,
) -> None:
    """Follow the source until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            pair = await asyncio.to_thread(source.current)
            if live.use(pair):
                log.info("certificate_changed", end=live.end.isoformat())
                changed()
        except ModelcacheError as error:
            log.warning("certificate_not_renewed", message=error.message, end=live.end.isoformat())
        except Exception:  # noqa: BLE001 - a bug now may be none in a month, when it matters
            trace = traceback.format_exc()
            log.error("certificate_check_failed", traceback=trace)  # noqa: TRY400 - not one of logging


def check(pair: Pair) -> datetime:
    """When it ends. Raises InvalidConfig where it is not what it should be."""
    context = _empty()
    _load(context, pair)
    if pair.authority:
        try:
            context.load_verify_locations(cadata=pair.authority.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            raise InvalidConfig(f"the authority of clients is not usable: {why}") from error
    return _end(pair)


def _empty() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    with _in_memory(pair.certificate) as certificate, _in_memory(pair.key) as key:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            raise InvalidConfig(f"the certificate and its key are not usable: {why}") from error


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    raise InvalidConfig("the key of the certificate has a password; give one without")


def _end(pair: Pair) -> datetime:
    try:
        return x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc
    except ValueError as error:
        raise InvalidConfig(f"the certificate is not usable: {error}") from error


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path under which this process, and nobody else, reads the data."""
    descriptor = os.memfd_create("modelcache-pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(PEM_BYTES_MAX)
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from error
