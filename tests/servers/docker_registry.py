"""Docker's registry: over a folder of its own, open, or with passwords, or with tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.certificates import Certificates
from tests.servers.process import Server, find_program


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Tokens of a server elsewhere. certificate: signs them."""

    realm: str
    service: str
    issuer: str
    certificate: Path


class DockerRegistry(Server):
    """One registry. `name` is what refs call it."""

    username = "puller"
    password = "correct horse battery"  # noqa: S105 - of a server that lives for a test
    # bcrypt, as `htpasswd -B` writes it
    _htpasswd = "puller:$2y$04$abcdefghijklmnopqrstuuqREtd3VJD2QVZbuFskFSLk6eRIrQoOS\n"

    def __init__(
        self,
        *,
        passwords: bool = False,
        tokens: TokenAuth | None = None,
        tls: Certificates | None = None,
        read_only: bool = False,
    ) -> None:
        super().__init__()
        self._program = find_program("docker-registry", "apt-get install docker-registry")
        self._passwords = passwords
        self._tokens = tokens
        self._tls = tls
        self._read_only = read_only
        self.scheme = "https" if tls else "http"

    @property
    def name(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """Where it keeps blobs: `docker/registry/v2/blobs/sha256/xx/<hex>/data`."""
        return self.folder / "data"

    def blob_path(self, digest: str) -> Path:
        """The file that holds a blob."""
        value = digest.removeprefix("sha256:")
        return self.data / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def command(self) -> Sequence[str]:
        http: dict[str, Any] = {"addr": self.name, "secret": "of no importance"}
        if self._tls:
            http["tls"] = {
                "certificate": str(self._tls.cert_file),
                "key": str(self._tls.key_file),
            }
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.data)},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._read_only:
            configuration["storage"]["maintenance"] = {"readonly": {"enabled": True}}
        if self._passwords:
            path = self.folder / "htpasswd"
            path.write_text(self._htpasswd)
            configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
        if self._tokens:
            configuration["auth"] = {
                "token": {
                    "realm": self._tokens.realm,
                    "service": self._tokens.service,
                    "issuer": self._tokens.issuer,
                    "rootcertbundle": str(self._tokens.certificate),
                }
            }
        path = self.folder / "config.yml"
        path.write_text(json.dumps(configuration))  # JSON is YAML
        return [self._program, "serve", str(path)]
