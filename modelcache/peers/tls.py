"""Mutual TLS between peers, with certificates that are renewed while we run.

Files are looked at for each new connection, through links, since cert-manager and the kubelet
replace the link. What cannot be loaded, for example a new certificate beside the old key, leaves
the old ones in use until the next look.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelcache.config.watched import State, state_of
from modelcache.errors import Forbidden, InvalidConfig

_COMMON_NAME: Final = "commonName"


class PeerTls:
    """A node's certificate, and whom it trusts. Thread-safe; a `domain.targets.TlsIdentity`."""

    def __init__(
        self,
        cert_file: str,
        key_file: str,
        ca_file: str,
        *,
        server_name: str = "",
        allowed_names: tuple[str, ...] = (),
    ) -> None:
        """See `config.PeerSettings`. Raises InvalidConfig for files that cannot be used."""
        self.server_name = server_name
        self._files = (cert_file, key_file, ca_file)
        self._allowed = frozenset(allowed_names)
        self._lock = threading.Lock()
        try:
            self._state: State = state_of(self._files)
            self._server, self._client = self._load()
        except ssl.SSLError as error:
            raise InvalidConfig(
                f"peers.cert_file, key_file and ca_file ({', '.join(self._files)}) do not make a "
                f"certificate: {error.reason or error.strerror or error}"
            ) from error
        except OSError as error:
            raise InvalidConfig(
                f"peers: certificates cannot be read: {error.filename or cert_file}: "
                f"{error.strerror}"
            ) from error

    def server_context(self) -> ssl.SSLContext:
        """For the next connection that comes in."""
        return self._fresh()[0]

    def client_context(self) -> ssl.SSLContext:
        """For the next connection to a peer."""
        return self._fresh()[1]

    def check_client(self, certificate: Mapping[str, Any] | None) -> None:
        """Raise Forbidden where none of the certificate's names is allowed.

        certificate: as `SSLSocket.getpeercert` gives it, already checked against the authority.
        """
        if self._allowed and not self._allowed.intersection(_names(certificate or {})):
            raise Forbidden("the certificate holds none of the names in peers.allowed_names")

    def _fresh(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        with self._lock:
            try:
                state = state_of(self._files)
                if state != self._state:
                    self._server, self._client = self._load()
                    self._state = state
            except OSError:  # and ssl.SSLError: caught in the middle of a change
                pass
            return self._server, self._client

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        contexts = (
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        cert_file, key_file, ca_file = self._files
        for context in contexts:
            context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(ca_file)
            # A password, so that OpenSSL does not ask the terminal for that of an encrypted key.
            context.load_cert_chain(cert_file, key_file, password="")
        # Connections live long; a client that never reads would be reset over unread tickets.
        contexts[0].num_tickets = 0
        return contexts


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Alternative names of every kind, and the subject's common name."""
    for _, name in certificate.get("subjectAltName", ()):
        yield name
    for group in certificate.get("subject", ()):
        for kind, name in group:
            if kind == _COMMON_NAME:
                yield name
