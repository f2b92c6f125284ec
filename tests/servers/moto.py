"""moto's server: for what only it emulates (STS, regions, versions, requester-pays)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.servers.minio import s3_environment
from tests.servers.process import Server, find_program


class Moto(Server):
    """All AWS services it knows, on one port."""

    access_key = "modelcachetestkey"
    secret_key = "modelcachetestsecretkey"  # noqa: S105 - of a server that lives for a test
    region = "us-east-1"

    def command(self) -> Sequence[str]:
        program = find_program("moto_server", "install the development packages")
        return [program, "-H", "127.0.0.1", "-p", str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return s3_environment(self.access_key, self.secret_key, self.region)
