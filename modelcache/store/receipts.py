"""A receipt goes with every complete blob: the hashes of its chunks and how the origin vouched.

It also says which file was published (inode, modification time), so that a blob changed behind
our back is noticed by one `stat`. Receipts of small blobs live in an extended attribute of the
blob itself, which costs a few microseconds instead of a second file; larger ones, and filesystems
without attributes, get a file beside the blob.

Format, little-endian: format u8, checksum u8 (its place in `_NAMES`; 255: the name stands at the
end), chunk size u32, size u64, mtime_ns i64, inode u64, 16 bytes XXH3-128 per chunk, the name in
ASCII if it has no number, low 32 bits of XXH3-64 of all that. A blob of one chunk thus has 50
bytes, and 52 is what an ext4 inode of 256 bytes has room for beside the attribute's name: one byte
more would take a disk block for each of ten thousand small files, and three times as long.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import xxhash

from modelcache.domain.ranges import ChunkGrid
from modelcache.store import files

XATTR: Final = "user.modelcache.receipt"
XATTR_BYTES_MAX: Final = 200  # about ten chunks: still cheaper than a second file
HASH_BYTES: Final = 16
_FORMAT: Final = 1
_HEAD: Final = struct.Struct("<BBIQqQ")
_CHECK: Final = struct.Struct("<I")
_NAMES: Final = ("", "sha256", "crc64nvme", "crc32c", "crc32", "sha1", "md5", "size")
_UNNUMBERED: Final = 255
_NO_XATTR: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSPC, errno.EPERM, errno.E2BIG, errno.ERANGE}
)


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
        return pack(
            self.size_bytes,
            self.chunk_bytes,
            b"".join(self.chunk_hashes),
            self.verified,
            mtime_ns=self.mtime_ns,
            inode=self.inode,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """Inverse of `to_bytes`; None for anything else."""
        body = data[: -_CHECK.size]
        if len(body) < _HEAD.size or data[-_CHECK.size :] != _check(body):
            return None
        number, code, chunk_bytes, size, mtime_ns, inode = _HEAD.unpack_from(body)
        if number != _FORMAT or not chunk_bytes or _UNNUMBERED > code >= len(_NAMES):
            return None
        end = _HEAD.size + HASH_BYTES * ChunkGrid(size, chunk_bytes).count
        name = body[end:].decode("ascii") if code == _UNNUMBERED else _NAMES[code]
        if len(body) < end or (code != _UNNUMBERED and len(body) != end):
            return None
        hashes = (body[at : at + HASH_BYTES] for at in range(_HEAD.size, end, HASH_BYTES))
        return cls(size, chunk_bytes, tuple(hashes), name or None, mtime_ns, inode)


def pack(
    size_bytes: int,
    chunk_bytes: int,
    hashes: bytes,
    verified: str | None,
    *,
    mtime_ns: int,
    inode: int,
) -> bytes:
    """The stored form of a receipt, without the detour over an object: `small` makes thousands."""
    name = verified or ""
    code = _NAMES.index(name) if name in _NAMES else _UNNUMBERED
    spelled = name.encode("ascii") if code == _UNNUMBERED else b""
    head = _HEAD.pack(_FORMAT, code, chunk_bytes, size_bytes, mtime_ns, inode)
    body = head + hashes + spelled
    return body + _check(body)


def attach(fd: int, data: bytes) -> bool:
    """Write a packed receipt into the blob's own attributes; False if it has to go into a file.

    The blob must still be writable by its mode: that is what the kernel asks for.
    """
    if len(data) > XATTR_BYTES_MAX:
        return False
    try:
        os.setxattr(fd, XATTR, data)
    except OSError as error:
        if error.errno in _NO_XATTR:
            return False
        raise
    return True


def write_file(path: Path, data: bytes) -> None:
    """Write a packed receipt beside its blob, atomically."""
    files.atomic_write(path, data)


def read(blob_path: Path, receipt_path: Path) -> Receipt | None:
    """The receipt of a blob, from wherever it is; None if there is none that can be read.

    The attribute counts as long as it fits the file. When the file was touched since, and found to
    be the same, a file beside it says what a read-only blob's attribute can no longer say.
    """
    try:
        attribute = Receipt.from_bytes(os.getxattr(blob_path, XATTR))
    except OSError:
        attribute = None  # too large for one, or a filesystem without them
    if attribute is not None and state(blob_path, attribute) is BlobState.INTACT:
        return attribute
    try:
        return Receipt.from_bytes(receipt_path.read_bytes()) or attribute
    except OSError:
        return attribute


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


def _check(body: bytes) -> bytes:
    return _CHECK.pack(xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF)
