"""A receipt goes with every complete blob: the hashes of its chunks and how the origin vouched.

It also says which file was published (inode, modification time), so that a blob changed behind
our back is noticed by one `stat`. Receipts of small blobs live in an extended attribute of the
blob itself, which costs a few microseconds instead of a second file; larger ones, and filesystems
without attributes, get a file beside the blob.

Format, little-endian: magic `MCR1`, chunk size u32, size u64, mtime_ns i64, inode u64, length of
the checksum's name u8 (0: unverified), the name in ASCII, 16 bytes XXH3-128 per chunk, XXH3-64 of
all that.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import xxhash

from modelcache.domain.ranges import ChunkGrid
from modelcache.store import files

XATTR: Final = "user.modelcache.receipt"
XATTR_BYTES_MAX: Final = 200  # what fits into an ext4 inode's own spare room, more or less
_HEAD: Final = struct.Struct("<4sIQqQB")
_MAGIC: Final = b"MCR1"
_NO_XATTR: Final = frozenset({errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSPC, errno.EPERM})
HASH_BYTES: Final = 16


class BlobState(StrEnum):
    """What one `stat` says of a blob."""

    INTACT = "intact"
    CHANGED = "changed"  # not the file that was published
    MISSING = "missing"
    UNKNOWN = "unknown"  # no readable receipt


@dataclass(frozen=True, slots=True)
class Receipt:
    """See the module. `verified` names the origin's checksum that held, None if there was none."""

    size_bytes: int
    chunk_bytes: int
    chunk_hashes: tuple[bytes, ...]
    verified: str | None
    mtime_ns: int = 0
    inode: int = 0

    @property
    def grid(self) -> ChunkGrid:
        """The chunks that `chunk_hashes` belong to."""
        return ChunkGrid(self.size_bytes, self.chunk_bytes)

    def of(self, status: os.stat_result) -> Receipt:
        """The same receipt for the file with this status."""
        return replace(self, mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    def to_bytes(self) -> bytes:
        """The stored form."""
        name = (self.verified or "").encode("ascii")
        head = _HEAD.pack(
            _MAGIC, self.chunk_bytes, self.size_bytes, self.mtime_ns, self.inode, len(name)
        )
        body = head + name + b"".join(self.chunk_hashes)
        return body + xxhash.xxh3_64_digest(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt | None:
        """Inverse of `to_bytes`; None for anything else."""
        body, check = data[:-8], data[-8:]
        if len(body) < _HEAD.size or xxhash.xxh3_64_digest(body) != check:
            return None
        magic, chunk_bytes, size, mtime_ns, inode, length = _HEAD.unpack_from(body)
        start = _HEAD.size + length
        hashes = body[start:]
        count = ChunkGrid(size, chunk_bytes).count if chunk_bytes else -1
        if magic != _MAGIC or len(hashes) != HASH_BYTES * count:
            return None
        return cls(
            size,
            chunk_bytes,
            tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)),
            body[_HEAD.size : start].decode("ascii") or None,
            mtime_ns,
            inode,
        )


def attach(fd: int, receipt: Receipt) -> bool:
    """Write a receipt into the blob's own attributes; False if it has to go into a file."""
    data = receipt.to_bytes()
    if len(data) > XATTR_BYTES_MAX:
        return False
    try:
        os.setxattr(fd, XATTR, data)
    except OSError as error:
        if error.errno in _NO_XATTR:
            return False
        raise
    return True


def write_file(path: Path, receipt: Receipt) -> None:
    """Write a receipt beside its blob, atomically."""
    files.atomic_write(path, receipt.to_bytes())


def read(blob_path: Path, receipt_path: Path) -> Receipt | None:
    """The receipt of a blob, from wherever it is; None if there is none that can be read.

    A file comes first: it may renew what a read-only blob's attribute can no longer say.
    """
    try:
        found = Receipt.from_bytes(receipt_path.read_bytes())
    except OSError:
        found = None  # the usual case of a small blob
    if found is not None:
        return found
    try:
        return Receipt.from_bytes(os.getxattr(blob_path, XATTR))
    except OSError:
        return None  # no attribute, or a filesystem without them


def state(blob_path: Path, receipt: Receipt | None) -> BlobState:
    """Compare a blob with its receipt by one stat."""
    try:
        status = blob_path.stat()
    except FileNotFoundError:
        return BlobState.MISSING
    if receipt is None:
        return BlobState.UNKNOWN
    same = (receipt.size_bytes, receipt.mtime_ns, receipt.inode) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )
    return BlobState.INTACT if same else BlobState.CHANGED
