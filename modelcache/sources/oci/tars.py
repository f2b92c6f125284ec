"""Members of an uncompressed tar layer, found by reading its headers in ranges.

Large members become files that are read where they lie; the rest (headers, padding, members of up
to a block) is read here and becomes the literal pieces of an assembly, so that the layer's digest
is still checked over everything. Where that does not pay or cannot be done faithfully, the answer
is None, and the layer is unpacked whole. The format is read by the standard library's tarfile.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from posixpath import normpath
from typing import Final

from modelcache.config import BLOCK_BYTES
from modelcache.domain.manifests import (
    Algorithm,
    Assembly,
    BlobId,
    Checksum,
    File,
    Pin,
    blob_id,
)
from modelcache.domain.paths import check_path
from modelcache.errors import DigestMismatch, SourceRefused, UnsafePath
from modelcache.sources.oci.documents import Descriptor
from modelcache.sources.oci.ranged import RangedReader, TooMuch

MEMBERS_MAX: Final = 256  # each large one is a request of its own, one after the other
LITERAL_BYTES_MAX: Final = 16 << 20  # kept in memory until the layer is whole
LINKS_MAX: Final = 8  # links to links
_BLOCK: Final = 512  # of a tar
_ORIGIN: Final = "oci-layer"


@dataclass(frozen=True, slots=True)
class Scanned:
    """The files of a layer, by their paths in it, and how its digest covers them."""

    files: tuple[File, ...]
    assembly: Assembly | None


@dataclass(slots=True)
class _Scan:
    """What has been found so far."""

    layer: Descriptor
    where: str
    members: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes | BlobId] = field(default_factory=list)
    taken: int = 0  # up to where the pieces reach
    literal_bytes: int = 0


def scan(layer: Descriptor, fetch: Callable[[int, int], bytes], where: str) -> Scanned | None:
    """Find the members of a layer. fetch: gives bytes [start, end) of it.

    None where the layer should be unpacked instead: too many members, too much between them, sparse
    files, one name twice, links to folders. Raises SourceRefused for a broken or lying tar,
    UnsafePath for a member that would leave the root or is no file, and what `fetch` raises.
    """
    reader = RangedReader(fetch, layer.size_bytes, LITERAL_BYTES_MAX + BLOCK_BYTES)
    found = _Scan(layer, where)
    try:
        for member in _members(reader, layer, where):
            if not _take(found, member, reader):
                return None
        _take_literal(found, reader, layer.size_bytes)
    except TooMuch:
        return None
    if not _follow_links(found) or not found.folders.isdisjoint(found.members):
        return None
    return Scanned(tuple(found.members.values()), _assembly(found))


def layer_key(layer: Descriptor, offset: int) -> str:
    """The key of a file that lies in a layer: where, and how large the layer is."""
    return f"{layer.digest}#{offset}/{layer.size_bytes}"


def _members(reader: RangedReader, layer: Descriptor, where: str) -> Iterator[tarfile.TarInfo]:
    """Every header, each checked against the layer's size."""
    try:
        # No `with`: closing it does nothing but close the reader.
        archive = tarfile.open(fileobj=reader, mode="r:", errorlevel=2)  # noqa: SIM115
        while (member := archive.next()) is not None:
            if member.size < 0 or _end(member) > layer.size_bytes:
                raise SourceRefused(
                    f"{where}: the tar in layer {layer.short} says that {member.name[:200]!r} has "
                    f"{member.size} bytes, which it cannot have"
                )
            yield member
    except (tarfile.TarError, ValueError, UnicodeError, OverflowError) as error:
        raise SourceRefused(
            f"{where}: layer {layer.short} is no readable tar: {error}; push the model again"
        ) from error
    rest = reader.span(archive.offset, min(archive.offset + _BLOCK, layer.size_bytes))
    if rest.strip(b"\0"):  # tarfile takes a broken header for the end
        raise SourceRefused(
            f"{where}: the tar in layer {layer.short} has a broken header at byte {archive.offset}"
        )


def _take(found: _Scan, member: tarfile.TarInfo, reader: RangedReader) -> bool:
    """Note one member; False where the layer has to be unpacked."""
    name = _name(member)
    if name == "":
        return True  # the root itself
    check_path(name)
    if member.isdir():
        found.folders.add(name)
        return len(found.folders) <= MEMBERS_MAX
    twice = name in found.members or name in found.links
    if twice or member.issparse() or len(found.members) + len(found.links) >= MEMBERS_MAX:
        return False
    if member.islnk() or member.issym():
        found.links[name] = _aim(member, name, found)
    elif not member.isreg():
        raise UnsafePath(
            f"{found.where}: {name[:200]!r} in layer {found.layer.short} is a device or a pipe, "
            "which no model needs"
        )
    elif member.size > BLOCK_BYTES:
        _take_large(found, name, member, reader)
    else:
        found.members[name] = _small(found, name, member, reader)
    return True


def _take_large(found: _Scan, name: str, member: tarfile.TarInfo, reader: RangedReader) -> None:
    _take_literal(found, reader, member.offset_data)
    layer, offset = found.layer, member.offset_data
    pin = Pin(version=layer.digest)
    blob = blob_id(
        origin=_ORIGIN,
        key=f"{layer.digest}#{offset}",
        size_bytes=member.size,
        pin=pin,
        checksums=(),
    )
    found.members[name] = File(name, member.size, layer_key(layer, offset), blob, pin)
    found.pieces.append(blob)
    found.taken = offset + member.size
    reader.let_go(found.taken)


def _small(found: _Scan, name: str, member: tarfile.TarInfo, reader: RangedReader) -> File:
    """A member that is read now: its own hash makes it the same blob as anywhere else."""
    offset = member.offset_data
    content = reader.span(offset, offset + member.size)
    checksum = Checksum(Algorithm.SHA256, sha256(content).hexdigest())
    pin = Pin(version=found.layer.digest)
    blob = BlobId(f"sha256-{checksum.value}")
    return File(name, member.size, layer_key(found.layer, offset), blob, pin, (checksum,))


def _take_literal(found: _Scan, reader: RangedReader, end: int) -> None:
    """Make what lies between the last piece and `end` a piece of its own."""
    if end < found.taken:
        raise SourceRefused(
            f"{found.where}: members of the tar in layer {found.layer.short} overlap"
        )
    found.literal_bytes += end - found.taken
    if found.literal_bytes > LITERAL_BYTES_MAX:
        raise TooMuch
    if end > found.taken:
        found.pieces.append(reader.span(found.taken, end))
    found.taken = end


def _assembly(found: _Scan) -> Assembly | None:
    """How the layer's digest covers the pieces; where all of them are here, it is checked now."""
    layer = found.layer
    value = layer.digest.removeprefix("sha256:")
    if all(isinstance(piece, bytes) for piece in found.pieces):
        whole = sha256()
        for piece in found.pieces:
            whole.update(piece if isinstance(piece, bytes) else b"")
        if whole.hexdigest() != value:
            raise DigestMismatch(
                f"{found.where}: layer {layer.short} does not have the digest it is named by; the "
                "registry or something before it altered it"
            )
        return None
    checksum = Checksum(Algorithm.SHA256, value)
    return Assembly(f"layer {layer.short} of {found.where}", checksum, tuple(found.pieces))


def _follow_links(found: _Scan) -> bool:
    """Give each link the file it leads to; False where one leads to anything else."""
    for name in found.links:
        aim = name
        for _ in range(LINKS_MAX):
            aim = found.links.get(aim, aim)
        file = found.members.get(aim)
        if file is None:
            return False
        found.members[name] = replace(file, path=name)
    return True


def _name(member: tarfile.TarInfo) -> str:
    name = member.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return "" if name == "." else name.rstrip("/") if member.isdir() else name


def _aim(member: tarfile.TarInfo, name: str, found: _Scan) -> str:
    """Where a link leads: a path from the root. Raises UnsafePath where that is outside."""
    folder = name.rpartition("/")[0] if member.issym() else ""
    aim = normpath(f"{folder}/{member.linkname}" if folder else member.linkname)
    if member.linkname.startswith("/") or aim == ".." or aim.startswith("../"):
        raise UnsafePath(
            f"{found.where}: {name[:200]!r} in layer {found.layer.short} is a link out of the model"
        )
    return aim


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + (member.size if member.isreg() else 0)
