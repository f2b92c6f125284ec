"""Whether a file that was read in pieces is what its origin says, where that can be told.

CRCs of pieces are combined in the order of the file, so this costs a pass over bytes that are in
the cache, and no waiting. Other checksums need the bytes in order: they are left to the store.
"""

from __future__ import annotations

import threading

from modelcache.domain.manifests import Checksum, File
from modelcache.errors import DigestMismatch
from modelcache.transfer.checks import crc_functions


class WholeFile:
    """Thread-safe."""

    def __init__(self, file: File, checksum: Checksum) -> None:
        self._file = file
        self._checksum = checksum
        self._crc, self._combine, _ = crc_functions(checksum.algorithm)
        self._pieces: dict[int, tuple[int, int]] = {}  # start -> (end, crc)
        self._lock = threading.Lock()

    def add(self, start: int, view: memoryview) -> None:
        """Bytes of the file from `start` on."""
        crc = self._crc(view, 0)
        with self._lock:
            self._pieces[start] = (start + len(view), crc)

    def check(self, head: bytes) -> None:
        """Raises DigestMismatch. Says nothing of a file that was not read from end to end.

        head: the start of the file, as far as it was read before the pieces.
        """
        at = min(self._pieces, default=0)
        if at > len(head):
            return
        whole = self._crc(memoryview(head)[:at], 0)
        while at < self._file.size_bytes:
            found = self._pieces.get(at)
            if found is None:
                return
            end, crc = found
            whole = self._combine(whole, crc, end - at)
            at = end
        if whole != int(self._checksum.value, 16):
            raise DigestMismatch(
                f"{self._file.path} does not match the {self._checksum.algorithm} of its origin"
            )


def whole_file(file: File) -> WholeFile | None:
    """A check, where the origin publishes a CRC over all of the file."""
    for checksum in file.checksums:
        if checksum.algorithm.combines and not checksum.parts:
            return WholeFile(file, checksum)
    return None
