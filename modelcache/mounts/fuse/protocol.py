"""The kernel's FUSE protocol, as far as a read-only tree needs it: numbers, records, packing.

Records and values are those of the kernel's `include/uapi/linux/fuse.h`, version 7.45; all are
little-endian on the machines we run on. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAJOR: Final = 7
MINOR: Final = 45  # newest that this module was written against; the kernel's, if that is older
MINOR_MIN: Final = 31  # Linux 5.4: requests of more than 128 KiB
ROOT_ID: Final = 1


class Op(IntEnum):
    """Requests. What is not named is answered by ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


# Flags of INIT. The second word of them is counted on from bit 32.
ASYNC_READ: Final = 1 << 0
READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
EXPLICIT_INVAL_DATA: Final = 1 << 25
INIT_EXT: Final = 1 << 30
PASSTHROUGH: Final = 1 << 37
HAS_RESEND: Final = 1 << 39
ALLOW_IDMAP: Final = 1 << 40  # for pods with users of their own; files belong to root all the same

# Flags of an answer to OPEN and OPENDIR.
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

# What is written without having been asked for.
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_RESEND: Final = 7

# ioctl(2) of /dev/fuse: _IOW(229, 1, 16 bytes) and _IOW(229, 2, 4 bytes)
BACKING_OPEN: Final = 0x4010E501
BACKING_CLOSE: Final = 0x4004E502

REQUEST_BYTES: Final = 128 << 10  # of one request: names, and a few thousand ids to forget
READ_BYTES_MAX: Final = 1 << 20  # of one answer: more gained nothing, and 128 KiB cost half
_PAGE: Final = 4096
_BACKGROUND: Final = 1024  # readahead under way; those of files not here yet wait among the others
_CONGESTED: Final = 768
_MAX_WRITE: Final = _PAGE  # nobody writes; the kernel wants a number

_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_IN: Final = struct.Struct("<IIIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QIi")
_READ_IN: Final = struct.Struct("<QQIIQII")
_STATFS: Final = struct.Struct("<QQQQQIIII24x")
_DIRENT: Final = struct.Struct("<QQII")
_INVAL_ENTRY: Final = struct.Struct("<QII")
_INVAL_INODE: Final = struct.Struct("<Qqq")
_BACKING: Final = struct.Struct("<iIQ")
_U64: Final = struct.Struct("<Q")

HEADER_BYTES: Final = _IN.size
DIRECTORY_TYPE: Final = 4
FILE_TYPE: Final = 8
_DIRECTORY_MODE: Final = 0o40555
_FILE_MODE: Final = 0o100444


@dataclass(frozen=True, slots=True)
class Head:
    """What every request begins with. op may be a number that `Op` does not name."""

    op: int
    unique: int
    node_id: int

    @classmethod
    def of(cls, data: bytearray) -> Head:
        """Of a request as it was read. Raises struct.error for one that is too short."""
        _, op, unique, node_id, _, _, _, _, _ = _IN.unpack_from(data)
        return cls(op, unique, node_id)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells of a file or a folder. mtime_s: seconds since the epoch."""

    inode: int
    size_bytes: int
    mtime_s: int
    folder: bool

    def pack(self) -> bytes:
        """As part of an answer."""
        blocks = -(-self.size_bytes // 512)
        mode, links = (_DIRECTORY_MODE, 2) if self.folder else (_FILE_MODE, 1)
        times = (self.mtime_s,) * 3
        return _ATTR.pack(
            self.inode, self.size_bytes, blocks, *times, 0, 0, 0, mode, links, 0, 0, 0, _PAGE, 0
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """What a kernel says at INIT."""

    major: int
    minor: int
    readahead_bytes: int
    flags: int

    @classmethod
    def of(cls, data: bytearray) -> Offer:
        """Of an INIT request."""
        major, minor, readahead, low, high = _INIT_IN.unpack_from(data, HEADER_BYTES)
        return cls(major, minor, readahead, low | high << 32)

    def accept(self, *, passthrough: bool) -> tuple[int, bytes]:
        """The flags that both have, and the answer to the kernel."""
        wanted = (
            ASYNC_READ
            | READDIRPLUS
            | READDIRPLUS_AUTO
            | PARALLEL_DIROPS
            | MAX_PAGES
            | EXPLICIT_INVAL_DATA
            | INIT_EXT
            | HAS_RESEND
            | ALLOW_IDMAP
            | (PASSTHROUGH if passthrough else 0)
        )
        flags = wanted & self.flags
        answer = _INIT_OUT.pack(
            MAJOR,
            min(self.minor, MINOR),
            max(self.readahead_bytes, READ_BYTES_MAX),
            flags & 0xFFFFFFFF,
            _BACKGROUND,
            _CONGESTED,
            _MAX_WRITE,
            1,  # times are told to the nanosecond
            READ_BYTES_MAX // _PAGE,
            0,
            flags >> 32,
            1 if flags & PASSTHROUGH else 0,  # files of a plain filesystem may stand behind ours
            0,
        )
        return flags, answer


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Of a file, or of a folder from the entry `offset` on."""

    handle: int
    offset: int
    size_bytes: int

    @classmethod
    def of(cls, data: bytearray) -> ReadRequest:
        """Of READ, READDIR and READDIRPLUS."""
        handle, offset, size, *_ = _READ_IN.unpack_from(data, HEADER_BYTES)
        return cls(handle, offset, size)


def number_of(data: bytearray) -> int:
    """The first word of a request: the handle of RELEASE, the request that INTERRUPT means."""
    number: int = _U64.unpack_from(data, HEADER_BYTES)[0]
    return number


def answer_head(unique: int, size_bytes: int, error: int = 0) -> bytes:
    """The head of an answer with so many bytes behind it. error: a positive errno, or 0."""
    return _OUT.pack(_OUT.size + size_bytes, -error, unique)


def entry(node_id: int, attributes: Attributes, valid_s: int) -> bytes:
    """The answer to LOOKUP."""
    return _ENTRY.pack(node_id, 0, valid_s, valid_s, 0, 0) + attributes.pack()


def no_entry(valid_s: int) -> bytes:
    """The same for a name that is not there."""
    return _ENTRY.pack(0, 0, valid_s, 0, 0, 0) + bytes(_ATTR.size)


def attributes_answer(attributes: Attributes, valid_s: int) -> bytes:
    """The answer to GETATTR."""
    return _ATTR_OUT.pack(valid_s, 0, 0) + attributes.pack()


def open_answer(handle: int, flags: int, backing: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR. backing: with FOPEN_PASSTHROUGH."""
    return _OPEN_OUT.pack(handle, flags, backing)


def dirent(inode: int, following: int, kind: int, name: bytes) -> bytes:
    """One entry of READDIR; `following` is the offset of the next. READDIRPLUS puts more before."""
    plain = _DIRENT.pack(inode, following, len(name), kind) + name
    return plain + bytes(-len(plain) % 8)


def statfs(size_bytes: int, files: int) -> bytes:
    """The answer to STATFS: a filesystem that is full."""
    blocks = -(-size_bytes // _PAGE)
    return _STATFS.pack(blocks, 0, 0, files, 0, _PAGE, 255, _PAGE, 0)


def forget_name(parent: int, name: bytes) -> bytes:
    """NOTIFY_INVAL_ENTRY: look the name up again."""
    return _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"


def forget_pages(node_id: int) -> bytes:
    """NOTIFY_INVAL_INODE: keep no byte of the file."""
    return _INVAL_INODE.pack(node_id, 0, 0)


def notice(code: int, body: bytes) -> bytes:
    """Something that the kernel did not ask for."""
    return _OUT.pack(_OUT.size + len(body), code, 0) + body


def backing_of(fd: int) -> bytearray:
    """The argument of BACKING_OPEN; a bytearray, so that ioctl returns the id."""
    return bytearray(_BACKING.pack(fd, 0, 0))
