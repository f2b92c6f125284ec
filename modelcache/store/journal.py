"""The journal of a blob under way: which chunks are done, and their hashes. Append-only.

Header, 80 bytes, little-endian: magic `MCJOURN1`, size u64, chunk size u64, boot id (16 bytes),
XXH3-128 of the blob id (16 bytes), 16 bytes reserved, XXH3-64 of the foregoing.
Record, 40 bytes: chunk u32, flags u32 (1: has a CRC, 2: forget the chunk, 4: doubt all chunks,
8: relayed by a node that had not verified the blob),
XXH3-128 of the chunk (16 bytes), CRC u64, reserved u32, low 32 bits of XXH3-64 over the foregoing
and the boot id.

A record is appended after its chunk's bytes were written. A torn record at the end, or a damaged
one, counts as not there; a damaged header makes the whole partial worthless. Nothing is synced
while a blob is under way: when the machine has been started anew since (the boot id differs), when
a sync has failed (the journal has a doubt) or a record is damaged (who knows what it took back),
the bytes behind every record are hashed again before they are believed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import xxhash

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid
from modelcache.store import files

_MAGIC: Final = b"MCJOURN1"
_HEADER: Final = struct.Struct("<8sQQ16s16s16sQ")
_RECORD: Final = struct.Struct("<II16sQII")
_HAS_CRC: Final = 1
_FORGET: Final = 2
_DOUBT: Final = 4
_RELAYED: Final = 8
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What is known of one stored chunk."""

    xxh3: bytes
    crc: int | None
    relayed: bool = False


@dataclass(slots=True)
class Records:
    """What a journal's bytes say. doubtful: the disk may have other bytes; hash them again."""

    records: dict[int, ChunkRecord] = field(default_factory=dict)
    doubtful: bool = False


def boot_id() -> bytes:
    """16 bytes that change when the machine starts; always others where the kernel does not say."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)


class Journal:
    """An open journal. One thread at a time."""

    def __init__(self, fd: int, grid: ChunkGrid, boot: bytes, found: Records) -> None:
        self._fd = fd
        self._boot = boot
        self.grid = grid
        self.records = found.records
        self.doubtful = found.doubtful

    @classmethod
    def create(cls, path: Path, blob: BlobId, grid: ChunkGrid) -> Self:
        """Start a journal in place of any other at `path`."""
        boot = boot_id()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            files.append_record(fd, _pack_header(blob, grid, boot))
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, grid, boot, Records())

    @classmethod
    def open(cls, path: Path, blob: BlobId, size_bytes: int) -> Self | None:
        """Continue a journal; None if there is none, or not one for this blob."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        header = read_header(data, blob)
        if header is None or header[0].size_bytes != size_bytes:
            return None
        grid, boot = header
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        torn = (len(data) - _HEADER.size) % _RECORD.size
        try:
            if torn:
                os.ftruncate(fd, len(data) - torn)  # or every later record would be out of step
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, grid, boot, read_records(data, grid, boot))

    @property
    def trusted(self) -> bool:
        """Whether the page cache that took the chunks is still there to vouch for them."""
        return not self.doubtful and self._boot == boot_id()

    def add(self, chunk: int, record: ChunkRecord) -> None:
        """Note a chunk whose bytes were written."""
        flags = 0 if record.crc is None else _HAS_CRC
        flags |= _RELAYED if record.relayed else 0
        self._append(chunk, flags, record.xxh3, record.crc or 0)
        self.records[chunk] = record

    def forget(self, chunk: int) -> None:
        """Note that a chunk is not there after all."""
        self._append(chunk, _FORGET, bytes(16), 0)
        self.records.pop(chunk, None)

    def doubt(self) -> None:
        """Note that what was written may never have reached the disk."""
        self._append(0, _DOUBT, bytes(16), 0)
        self.doubtful = True

    def close(self) -> None:
        """Close. The journal stays."""
        os.close(self._fd)

    def _append(self, chunk: int, flags: int, xxh3: bytes, crc: int) -> None:
        packed = _RECORD.pack(chunk, flags, xxh3, crc, 0, 0)[:-4]
        check = struct.pack("<I", _check(packed, self._boot))
        files.append_record(self._fd, packed + check)


def read_header(data: bytes, blob: BlobId) -> tuple[ChunkGrid, bytes] | None:
    """Grid and boot id of a journal of `blob`, or None."""
    if len(data) < _HEADER.size:
        return None
    magic, size, chunk_bytes, boot, name, _, check = _HEADER.unpack_from(data)
    if magic != _MAGIC or check != xxhash.xxh3_64_intdigest(data[: _HEADER.size - 8]):
        return None
    if name != xxhash.xxh3_128_digest(blob.encode()) or not chunk_bytes:
        return None
    return ChunkGrid(size, chunk_bytes), boot


def read_records(data: bytes, grid: ChunkGrid, boot: bytes) -> Records:
    """The chunks a journal's bytes vouch for, damaged records left out."""
    found = Records()
    for at in range(_HEADER.size, len(data) - _RECORD.size + 1, _RECORD.size):
        chunk, flags, xxh3, crc, _, check = _RECORD.unpack_from(data, at)
        damaged = check != _check(data[at : at + _RECORD.size - 4], boot)
        if damaged or flags & _DOUBT or chunk >= grid.count:
            found.doubtful = True
        elif flags & _FORGET:
            found.records.pop(chunk, None)
        else:
            found.records[chunk] = ChunkRecord(
                xxh3, crc if flags & _HAS_CRC else None, bool(flags & _RELAYED)
            )
    return found


def _pack_header(blob: BlobId, grid: ChunkGrid, boot: bytes) -> bytes:
    name = xxhash.xxh3_128_digest(blob.encode())
    packed = _HEADER.pack(_MAGIC, grid.size_bytes, grid.chunk_bytes, boot, name, bytes(16), 0)
    return packed[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(packed[:-8]))


def _check(packed: bytes, boot: bytes) -> int:
    return xxhash.xxh3_64_intdigest(packed + boot) & 0xFFFFFFFF
