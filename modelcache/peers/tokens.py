"""The cluster's token: read from its file, followed when it changes, good a while longer after."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelcache.errors import InvalidConfig
from modelcache.peers.signing import TOKENS_MAX
from modelcache.peers.watched import State, state_of

TOKEN_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 4096
LOOK_EVERY_S: Final = 1.0  # a request costs 20 microseconds; a look at the file is 5 of them


class TokenFile:
    """Thread-safe. Never shows what it holds."""

    def __init__(self, path: str, grace_s: float, now_s: Callable[[], float]) -> None:
        """grace_s: how long the token before is good. now_s: monotonic. Raises InvalidConfig."""
        self._path = path
        self._grace_s = grace_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._looked_s = now_s()
        self._before: bytes | None = None
        self._before_until_s = 0.0
        try:
            self._state: State = state_of([path])
            self._token = self._read()
        except OSError as error:
            raise InvalidConfig(
                f"peers.token_file: {path} cannot be read: {error.strerror}"
            ) from error

    def current(self) -> tuple[bytes, ...]:
        """The tokens that hold now, the newest first; at most TOKENS_MAX."""
        with self._lock:
            now_s = self._now_s()
            if now_s - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = now_s
                self._look(now_s)
            if self._before is not None and now_s < self._before_until_s:
                return (self._token, self._before)[:TOKENS_MAX]
            self._before = None
            return (self._token,)

    def _look(self, now_s: float) -> None:
        try:
            state = state_of([self._path])
            if state == self._state:
                return
            token = self._read()
            self._state = state
        except (OSError, InvalidConfig):  # caught in the middle of a change: look again soon
            return
        if token != self._token:
            self._before, self._before_until_s = self._token, now_s + self._grace_s
            self._token = token

    def _read(self) -> bytes:
        with Path(self._path).open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX + 1).strip()
        if not TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX:
            raise InvalidConfig(
                f"peers.token_file: {self._path} must hold {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} "
                "characters; make one with: openssl rand -hex 32"
            )
        return token
