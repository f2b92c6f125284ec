"""Reading a tar as it comes: headers, and how many bytes follow each.

The standard library's `TarInfo.frombuf` takes a header apart; what spans several (long names of GNU
tar, extended headers of POSIX) is put together here, with bounds that the library does not have: it
reads an extended header of any size into memory. Formats: POSIX.1-2017, pax, "ustar Interchange
Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from tarfile import BLOCKSIZE, TarInfo
from typing import Final

from modelcache.agent.unpacking.pipe import Pipe
from modelcache.domain.ranges import MIB
from modelcache.errors import CorruptData

HEADER_BYTES_MAX: Final = MIB  # of one extended header; names end at 4 KiB, attributes at 64
_EXTENDED: Final = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_SPARSE: Final = "GNU.sparse."
_ZEROS: Final = bytes(BLOCKSIZE)


class Kind(Enum):
    """What a member is; the value is a word for messages."""

    FILE = "a file"
    FOLDER = "a folder"
    LINK = "a symbolic link"
    HARD_LINK = "a hard link"
    DEVICE = "a device"
    FIFO = "a named pipe"
    SPARSE = "a sparse file"
    OTHER = "of a kind that is not known"


_KINDS: Final = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.FOLDER,
    tarfile.SYMTYPE: Kind.LINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.CHRTYPE: Kind.DEVICE,
    tarfile.BLKTYPE: Kind.DEVICE,
    tarfile.FIFOTYPE: Kind.FIFO,
    tarfile.GNUTYPE_SPARSE: Kind.SPARSE,
}
_WITHOUT_DATA: Final = frozenset(
    {Kind.FOLDER, Kind.LINK, Kind.HARD_LINK, Kind.DEVICE, Kind.FIFO}  # whatever their size says
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member, as the tar has it: its names were not checked. size_bytes: of what follows."""

    name: str
    kind: Kind
    size_bytes: int
    target: str


def members(stream: Pipe) -> Iterator[Member]:
    """Every member in turn. The caller takes exactly its `size_bytes` from the stream.

    Raises CorruptData for what is no tar, or is cut short.
    """
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    while (info := _header(stream)) is not None:
        if info.type in _EXTENDED:
            own.update(_records(_extension(stream, info)))
        elif info.type == tarfile.XGLTYPE:
            shared.update(_records(_extension(stream, info)))
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            own.setdefault("path", _long_name(stream, info))
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            own.setdefault("linkpath", _long_name(stream, info))
        else:
            member = _member(info, shared | own)
            own = {}
            yield member
            _skip(stream, -member.size_bytes % BLOCKSIZE)
    if own:
        raise CorruptData("it ends after an extended header")


def _header(stream: Pipe) -> TarInfo | None:
    """The next header; None at the end of the archive, after which there is nothing but zeros."""
    if stream.at_end():
        return None
    block = stream.read(BLOCKSIZE)
    if block == _ZEROS:
        if any(span.tobytes().strip(b"\0") for span in stream.rest()):
            raise CorruptData("something follows the end of its tar")
        return None
    try:
        info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise CorruptData(f"it is no tar, or a damaged one ({error})") from error
    if info.size < 0:
        raise CorruptData("a member of its tar has a negative size")
    return info


def _member(info: TarInfo, extended: dict[str, str]) -> Member:
    kind = _KINDS.get(info.type, Kind.OTHER)
    if any(name.startswith(_SPARSE) for name in extended):
        kind = Kind.SPARSE
    size = info.size
    if "size" in extended:
        size = _number(extended["size"])
    return Member(
        name=extended.get("path", info.name),
        kind=kind,
        size_bytes=0 if kind in _WITHOUT_DATA else size,
        target=extended.get("linkpath", info.linkname),
    )


def _extension(stream: Pipe, info: TarInfo) -> bytes:
    """What an extended header says, without its padding."""
    if info.size > HEADER_BYTES_MAX:
        raise CorruptData(f"a header of its tar has {info.size} bytes")
    data = stream.read(info.size)
    _skip(stream, -info.size % BLOCKSIZE)
    return data


def _long_name(stream: Pipe, info: TarInfo) -> str:
    return _text(_extension(stream, info).partition(b"\0")[0])


def _records(data: bytes) -> dict[str, str]:
    r"""The records of an extended header: `LENGTH NAME=VALUE\n`, LENGTH counting all of it."""
    found = {}
    while data:
        digits, space, _ = data[:20].partition(b" ")
        length = _number(digits.decode("ascii", "replace"))
        name, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        whole = len(digits) + 2 < length <= len(data) and data[length - 1 : length] == b"\n"
        if not (space and equals and whole):
            raise CorruptData("an extended header of its tar is malformed")
        found[_text(name)] = _text(value)
        data = data[length:]
    return found


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):  # noqa: PLR2004 - 64 bits
        raise CorruptData("an extended header of its tar is malformed")
    return int(digits)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _skip(stream: Pipe, size: int) -> None:
    for _ in stream.spans(size):
        pass
