"""What earlier pushes have learnt: digests of files, and which repository has which blob.

A file is believed to be what it was while device, inode, size, modification and change time are the
same. Times have a grain, so a file that changed just before it was hashed is not remembered: it
could change once more within the same grain. Losing all this costs time and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

ENTRIES_MAX: Final = 20_000  # of each kind, the oldest go first: some 4 MB
FILE_BYTES_MAX: Final = 64 << 20
SETTLED_S: Final = 2.0  # the coarsest grain among filesystems in use is that of FAT
_NAME: Final = "pushed.json"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def default_folder(environment: Mapping[str, str]) -> Path:
    """A folder of the user's cache, apart from any store."""
    cache = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or "/") / ".cache"
    return Path(cache) / "modelcache-push"


class Digests:
    """See the module. Thread-safe; of two processes the last to save wins."""

    def __init__(self, folder: Path) -> None:
        """What cannot be read counts as not there."""
        self._path = folder / _NAME
        self._guard = threading.Lock()
        self._files: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._changed = False
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with self._path.open("rb") as file:
                kept: Any = json.loads(file.read(FILE_BYTES_MAX))
            files = _texts(kept["files"])
            self._files = {key: text for key, text in files.items() if _DIGEST.fullmatch(text)}
            self._places = _texts(kept["places"])

    def find(self, status: os.stat_result, form: str) -> str | None:
        """The digest of this very state of a file. form: what was hashed, if not it alone."""
        return self._files.get(_key(status, form))

    def remember(self, status: os.stat_result, form: str, digest: str, now_s: float) -> None:
        """Note the digest of a file that was hashed; now_s: seconds since the epoch."""
        if now_s - max(status.st_mtime, status.st_ctime) >= SETTLED_S:
            self._note(self._files, _key(status, form), digest)

    def repository(self, registry: str, digest: str) -> str | None:
        """Where on this registry a blob was last pushed to or found."""
        return self._places.get(f"{registry} {digest}")

    def remember_place(self, registry: str, repository: str, digest: str) -> None:
        """Note that a repository has a blob."""
        self._note(self._places, f"{registry} {digest}", repository)

    def save(self) -> None:
        """Write what is new. A disk that does not take it is no reason to fail."""
        with self._guard:
            if not self._changed:
                return
            self._changed = False
            text = json.dumps({"files": self._files, "places": self._places})
        part = self._path.with_name(f"{_NAME}.{secrets.token_hex(8)}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                part.write_text(text, encoding="utf-8")
                part.replace(self._path)
            finally:
                part.unlink(missing_ok=True)

    def _note(self, notes: dict[str, str], key: str, value: str) -> None:
        with self._guard:
            notes.pop(key, None)  # to the end: what is used stays longest
            notes[key] = value
            while len(notes) > ENTRIES_MAX:
                del notes[next(iter(notes))]
            self._changed = True


def _key(status: os.stat_result, form: str) -> str:
    numbers = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return ":".join([*map(str, numbers), form])


def _texts(kept: object) -> dict[str, str]:
    pairs = kept.items() if isinstance(kept, dict) else ()
    return {str(key): value for key, value in pairs if isinstance(value, str)}
