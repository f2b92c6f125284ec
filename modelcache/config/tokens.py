"""A token in a file: read, followed when the file changes, and good a while longer after that."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from modelcache.config.watched import State, state_of
from modelcache.errors import InvalidConfig

TOKEN_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 4096


class TokenFile:
    """Thread-safe. Never shows what it holds."""

    def __init__(
        self,
        path: str,
        setting: str,
        *,
        grace_s: float = 0.0,
        look_every_s: float = 0.0,
        word: bool = False,
        now_s: Callable[[], float] = monotonic,
    ) -> None:
        """setting: which names the file. grace_s: how long the token before is good, once changed.

        look_every_s: how often the file is looked at, at most. word: nothing but one word will do,
        as in a header. now_s: monotonic. Raises InvalidConfig, naming the file and not its content.
        """
        self._path = path
        self._setting = setting
        self._word = word
        self._look_every_s = look_every_s
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
            raise InvalidConfig(f"{setting}: {path} cannot be read: {error.strerror}") from error

    def current(self) -> tuple[bytes, ...]:
        """The tokens that hold now, the newest first: one or two."""
        with self._lock:
            now_s = self._now_s()
            if now_s - self._looked_s >= self._look_every_s:
                self._looked_s = now_s
                self._look(now_s)
            if self._before is not None and now_s < self._before_until_s:
                return (self._token, self._before)
            self._before = None
            return (self._token,)

    def matches(self, given: bytes) -> bool:
        """Whether this is one of the tokens that hold now; compared in constant time."""
        return any(hmac.compare_digest(given, token) for token in self.current())

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
        fits = TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX
        if not fits or (self._word and len(token.split()) != 1):
            one = "one word of " if self._word else ""
            raise InvalidConfig(
                f"{self._setting}: {self._path} must hold {one}{TOKEN_BYTES_MIN} to "
                f"{TOKEN_BYTES_MAX} characters; make one with: openssl rand -hex 32"
            )
        return token
