"""The members of one layer: which count, whether they are safe, and what they come to.

Names come from the network. Each is made relative to the archive's root and checked before anything
is done with it; nothing is ever written under a name that an archive chose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelcache.agent.unpacking.pipe import Pipe
from modelcache.agent.unpacking.tar import Kind, Member, members
from modelcache.domain.archives import Unpacking
from modelcache.domain.layers import ENTRIES_MAX, SHOWN_CHARACTERS, Entry, EntryKind, Listing
from modelcache.domain.manifests import Archive, BlobId
from modelcache.domain.paths import check_path, parents
from modelcache.errors import SourceRefused, UnsafePath
from modelcache.store import Staged, StagingFolder, WriteMode

# OCI image-spec, layer.md, "Whiteouts"
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_RESERVED: Final = ".wh..wh."  # of AUFS's own bookkeeping


@dataclass(frozen=True, slots=True)
class Room:
    """How members are stored. take: called with the bytes of each before it is begun."""

    folder: StagingFolder
    write_mode: Callable[[int], WriteMode]
    take: Callable[[int], None]


@dataclass(slots=True)
class LayerReader:
    """Reads one layer's tar once. wants: whether the member of this path is to be stored."""

    archive: Archive
    wants: Callable[[str], bool]
    room: Room
    staged: list[Staged] = field(default_factory=list)
    _entries: dict[str, Entry] = field(default_factory=dict)
    _whiteouts: list[str] = field(default_factory=list)
    _opaque: list[str] = field(default_factory=list)

    def read(self, stream: Pipe) -> Listing:
        """Store what is wanted, and tell what there is.

        Raises SourceRefused or UnsafePath, naming the member; CorruptData for what is no tar.
        """
        for member in members(stream):
            self._take(member, stream)
            if len(self._entries) + len(self._whiteouts) + len(self._opaque) > ENTRIES_MAX:
                raise SourceRefused(
                    f"layer {self._layer} has more than {ENTRIES_MAX} members; name a folder of it "
                    "with ?path="
                )
        self._check_nesting()
        return Listing(tuple(self._entries.values()), tuple(self._whiteouts), tuple(self._opaque))

    @property
    def _layer(self) -> str:
        return self.archive.layer.path

    @property
    def _image(self) -> bool:
        return self.archive.unpacking is Unpacking.IMAGE

    # One member

    def _take(self, member: Member, stream: Pipe) -> None:
        if member.kind is Kind.SPARSE:
            raise self._refused(member, "a sparse file; pack it with --sparse left out")
        path = self._place(self._parts(member, member.name))
        if path is None:
            _skip(stream, member.size_bytes)
        elif self._image and path.rpartition("/")[2].startswith(_WHITEOUT):
            self._white_out(path)
            _skip(stream, member.size_bytes)
        elif not path:
            if member.kind is not Kind.FOLDER:
                raise self._refused(member, f"{member.kind.value} where a folder is looked for")
        else:
            self._check(member, path)
            entry = self._entry(member, path, stream)
            self._entries.pop(path, None)  # the later of two of one name counts, as in any tar
            self._entries[path] = entry

    def _entry(self, member: Member, path: str, stream: Pipe) -> Entry:
        match member.kind:
            case Kind.FILE:
                blob = self._store(path, member.size_bytes, stream)
                return Entry(path, EntryKind.FILE, member.size_bytes, blob)
            case Kind.FOLDER:
                return Entry(path, EntryKind.FOLDER)
            case Kind.LINK:
                return Entry(path, EntryKind.LINK, target=member.target)
            case Kind.HARD_LINK:
                return self._twin(member, path)
            case _:
                raise self._refused(member, f"{member.kind.value}, which no model has")

    def _store(self, path: str, size: int, stream: Pipe) -> BlobId:
        """Take a file's bytes; returns the blob they make, whether or not it is wanted."""
        if not self.wants(path):
            hashed = hashlib.sha256(usedforsecurity=False)
            for span in stream.spans(size):
                hashed.update(span)
            return BlobId(f"sha256-{hashed.hexdigest()}")
        self.room.take(size)
        file = self.room.folder.begin(size, self.room.write_mode(size))
        try:
            for span in stream.spans(size):
                file.write(span)
            self.staged.append(file.finish())
        finally:
            file.abandon()
        return self.staged[-1].blob

    def _twin(self, member: Member, path: str) -> Entry:
        """A hard link: one more name of what came before."""
        target = self._place(self._parts(member, member.target))
        twin = self._entries.get(target) if target else None
        if twin is None or twin.kind is EntryKind.FOLDER:
            raise self._refused(member, "a hard link to what is not before it in the layer")
        carrier = twin.target or twin.path
        return Entry(path, twin.kind, twin.size_bytes, twin.blob, carrier)

    # Names

    def _parts(self, member: Member, name: str) -> list[str]:
        """A name from the top of the archive. Raises UnsafePath for one that leaves it."""
        if name.startswith("/") and not self._image:
            raise UnsafePath(f"{self._shown(member)} has an absolute name")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if ".." in parts:
            raise UnsafePath(f"{self._shown(member)} has a name that leaves the archive")
        return parts

    def _place(self, parts: list[str]) -> str | None:
        """The path below the root; empty for the root and what it is in; None if elsewhere.

        A whiteout of any of those removes all that is below.
        """
        root = self.archive.root.split("/") if self.archive.root else []
        shared = min(len(parts), len(root))
        if len(parts) <= len(root) and self._image and self._removes(parts, root):
            return _OPAQUE
        if parts[:shared] != root[:shared]:
            return None
        return "/".join(parts[len(root) :])

    def _removes(self, parts: list[str], root: list[str]) -> bool:
        """Whether this is a whiteout of the root, or of a folder that it is in."""
        if not parts or parts[:-1] != root[: len(parts) - 1]:
            return False
        return parts[-1] in {_OPAQUE, _WHITEOUT + root[len(parts) - 1]}

    def _white_out(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if name == _OPAQUE:
            self._opaque.append(folder)
        elif not name.startswith(_RESERVED):
            removed = name.removeprefix(_WHITEOUT)
            self._whiteouts.append(f"{folder}/{removed}" if folder else removed)

    def _check(self, member: Member, path: str) -> None:
        try:
            check_path(path)
        except UnsafePath as error:
            raise UnsafePath(f"layer {self._layer}: {error.message}") from error
        if member.kind is Kind.LINK and not member.target:
            raise self._refused(member, "a link to nothing")

    def _check_nesting(self) -> None:
        """What lies below a link would be written wherever that leads."""
        for path in self._entries:
            for parent in parents(path):
                entry = self._entries.get(parent)
                if entry is not None and entry.kind is not EntryKind.FOLDER:
                    what = "link" if entry.kind is EntryKind.LINK else "file"
                    raise SourceRefused(
                        f"layer {self._layer}: {path[:SHOWN_CHARACTERS]!r} lies below "
                        f"{parent[:SHOWN_CHARACTERS]!r}, which is a {what} in the same layer"
                    )

    def _refused(self, member: Member, what: str) -> SourceRefused:
        return SourceRefused(f"{self._shown(member)} is {what}")

    def _shown(self, member: Member) -> str:
        return f"layer {self._layer}: member {member.name[:SHOWN_CHARACTERS]!r}"


def _skip(stream: Pipe, size: int) -> None:
    for _ in stream.spans(size):
        pass
