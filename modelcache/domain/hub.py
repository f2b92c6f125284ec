"""Where a file of a hub's repository is: the commit, and the path inside. Stored as `File.key`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_KEY: Final = re.compile(r"(?P<commit>[0-9a-f]{40})/(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HubKey:
    """`str()` and `parse` are inverse. commit: 40 hex digits."""

    commit: str
    path: str

    def __str__(self) -> str:
        """The stored form."""
        return f"{self.commit}/{self.path}"

    @classmethod
    def parse(cls, text: str) -> HubKey | None:
        """Inverse of `str()`; None for what is no such key."""
        match = _KEY.fullmatch(text)
        return cls(match["commit"], match["path"]) if match else None


def is_commit(text: str) -> bool:
    """Whether a revision is a commit itself, which can mean nothing else later."""
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None
