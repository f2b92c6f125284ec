"""fake-gcs-server: Google's JSON API as others emulate it; built by `python -m tests.tools`.

What it does not do as GCS does: it checks no credentials, ignores `fields` and `userProject`, and
its 404 does not tell a missing bucket from a missing object. Generations, ranges, CRC32C and the
decompression of gzip objects are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.servers.process import Server, find_program


class FakeGcs(Server):
    """One emulator, with its objects in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._program = find_program("fake-gcs-server", "run `python -m tests.tools`")

    def command(self) -> Sequence[str]:
        return [
            *(self._program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"),
            *("-port", str(self.port), "-external-url", self.url, "-log-level", "error"),
        ]


def gcs_client(url: str) -> Any:
    """Google's own client of the server there; no credentials, nothing from the environment."""
    session = requests.Session()
    session.trust_env = False
    return storage.Client(
        project="tests",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
        _http=session,
    )
