"""crane's registry, another implementation: in memory, built by `python -m tests.tools`."""

from __future__ import annotations

from collections.abc import Sequence

from tests.servers.process import Server, find_program


class CraneRegistry(Server):
    """One registry. `name` is what refs call it."""

    def __init__(self) -> None:
        super().__init__()
        self._program = find_program("crane", "run `python -m tests.tools`")

    @property
    def name(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [self._program, "registry", "serve", "--address", self.name]
