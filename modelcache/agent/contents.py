"""Bytes of models for who asks over the agent's API: of complete files, and of those that come.

Meant for loaders on the node that cannot see the store. What is missing becomes the most urgent of
what is fetched. Who read bytes before their file was verified has to learn if they were wrong:
each answer has a *stamp*, which is another one once the file has been found not to be what its
origin says, or the agent has been restarted.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from contextlib import ExitStack
from typing import Final

from modelcache.agent.arriving import Audience
from modelcache.agent.engine import Engine
from modelcache.domain.manifests import BlobId, File
from modelcache.domain.ranges import ByteRange
from modelcache.errors import NotInStore, Throttled, UsageError

READ_BYTES_MAX: Final = 8 << 20  # of one answer, and of memory for it
READERS_MAX: Final = 16  # at once; so many answers are in memory
WAIT_MAX_S: Final = 5.0  # then it is asked again: a thread of the API is held meanwhile


class Contents:
    """See the module. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = threading.BoundedSemaphore(READERS_MAX)
        self._life = secrets.token_hex(4)
        self._doubts: Counter[BlobId] = Counter()
        self._held = ExitStack()
        audience = Audience(news=_nothing, doubted=self._doubt)
        self._held.enter_context(engine.arriving.attended(audience))

    def close(self) -> None:
        """Hear of nothing any more. Idempotent."""
        self._held.close()

    def read(self, what: str, path: str, span: ByteRange, wait_s: float) -> tuple[bytearray, str]:
        """Bytes of one file of a model, and their stamp; waits for what is not here.

        An empty span asks for the stamp alone. Raises NotInStore, UsageError for what lies outside
        of the file or is too much, NotYet after `wait_s`, and Throttled when too many read.
        """
        file = self._file(what, path)
        if span.end > file.size_bytes or span.size_bytes > READ_BYTES_MAX:
            raise UsageError(
                f"{path} has {file.size_bytes} bytes, of which {READ_BYTES_MAX} are given at once"
            )
        stamp = self._stamp(file.blob)
        data = bytearray(span.size_bytes)
        if not data:
            return data, stamp
        if not self._turns.acquire(blocking=False):
            raise Throttled("too many read from the agent at once; ask again", retry_after_s=1)
        try:
            view = memoryview(data)
            timeout_s = min(wait_s, WAIT_MAX_S)
            self._engine.arriving.wait(file, span.start, view, timeout_s=timeout_s)
        finally:
            self._turns.release()
        return data, stamp

    def _file(self, what: str, path: str) -> File:
        store = self._engine.store
        for file in store.manifest(store.find(what)).files:
            if file.path == path:
                return file
        raise NotInStore(f"model {what[:12]} has no such file")

    def _stamp(self, blob: BlobId) -> str:
        return f"{self._life}-{self._doubts[blob]}"

    def _doubt(self, blob: BlobId) -> None:
        self._doubts[blob] += 1


def _nothing() -> None:
    """Readers wait in `Arriving`, which wakes them itself."""
