"""A certificate authority of our own, and certificates that it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = ("-days", "10")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files."""

    ca_file: Path
    cert_file: Path
    key_file: Path


def make_certificates(directory: Path) -> Certificates:
    """An authority, and a server's certificate for 127.0.0.1 and localhost; for ten days."""
    return Authority(directory).issue("public", "localhost", ("IP:127.0.0.1", "DNS:localhost"))


class Authority:
    """Signs with openssl."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "ca.pem"
        self._directory = directory
        self._key = directory / "ca.key"
        _openssl(
            "req",
            "-x509",
            *_KEY,
            *_DAYS,
            *("-keyout", self._key, "-out", self.ca_file),
            *("-subj", "/CN=modelcache test authority"),
            *("-addext", "keyUsage=critical,keyCertSign"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
        )

    def issue(
        self,
        file_name: str,
        common_name: str,
        alternatives: tuple[str, ...],
        *,
        usage: str = "serverAuth",
    ) -> Certificates:
        """A certificate and its key. alternatives: as in `IP:127.0.0.1`, `DNS:localhost`."""
        found = Certificates(
            self.ca_file,
            self._directory / f"{file_name}.crt",
            self._directory / f"{file_name}.key",
        )
        request = self._directory / f"{file_name}.csr"
        extensions = self._directory / f"{file_name}.cnf"
        extensions.write_text(
            f"subjectAltName={','.join(alternatives)}\nbasicConstraints=CA:FALSE\n"
            f"extendedKeyUsage={usage}\n"
        )
        subject = f"/CN={common_name}"
        _openssl("req", *_KEY, "-keyout", found.key_file, "-out", request, "-subj", subject)
        _openssl(
            "x509",
            "-req",
            *("-in", request, "-CA", self.ca_file, "-CAkey", self._key, "-CAcreateserial"),
            *("-out", found.cert_file, *_DAYS, "-extfile", extensions),
        )
        return found

    def issue_peer(self, file_name: str, name: str = "modelcache-peer") -> Certificates:
        """What a node has: one certificate for both ends, without an address."""
        return self.issue(file_name, name, (f"DNS:{name}",), usage="serverAuth,clientAuth")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
