"""A certificate authority of our own, and a certificate for 127.0.0.1 and localhost."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files."""

    ca_file: Path
    cert_file: Path
    key_file: Path


def make_certificates(directory: Path) -> Certificates:
    """Make all three with openssl, valid for ten days."""
    directory.mkdir(parents=True, exist_ok=True)
    found = Certificates(directory / "ca.pem", directory / "public.crt", directory / "private.key")
    ca_key, request = directory / "ca.key", directory / "request.csr"
    names = directory / "names.cnf"
    names.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
        "extendedKeyUsage=serverAuth\n"
    )
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        [
            "req",
            "-x509",
            *key,
            "-keyout",
            ca_key,
            "-out",
            found.ca_file,
            "-days",
            "10",
            "-subj",
            "/CN=modelcache test authority",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ]
    )
    _openssl(["req", *key, "-keyout", found.key_file, "-out", request, "-subj", "/CN=localhost"])
    _openssl(
        [
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            found.ca_file,
            "-CAkey",
            ca_key,
            "-CAcreateserial",
            "-out",
            found.cert_file,
            "-days",
            "10",
            "-extfile",
            names,
        ]
    )
    return found


def _openssl(arguments: list[str | Path]) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
