"""What archives hold, and the files that several of them make together.

A `Listing` is what unpacking one archive has found. `files_of` lays listings over each other in
order, as a container engine lays layers: what comes later replaces, whiteouts remove. Plain
archives add to each other, and may not disagree.

The result has files only. A link becomes a file of the same blob as the file it means; one that
means a folder becomes the files in it. Links are followed as Linux would, but within the tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from modelcache.domain.archives import Unpacking
from modelcache.domain.manifests import Algorithm, Archive, BlobId, Checksum, File, Manifest, Pin
from modelcache.errors import SourceRefused

ENTRIES_MAX: Final = 200_000  # of one archive, and files of a model: about 100 MB of Python objects
LINKS_MAX: Final = 40  # that one name leads through; Linux's own limit
SHOWN_CHARACTERS: Final = 200  # of a name in a message; it may be longer than a screen
_SHA256: Final = "sha256-"
_INSIDE: Final = "!"  # in a key, between a layer and a name in it
_IDENTITY: Final = re.compile(r"sha256-[0-9a-f]{64}")


class EntryKind(StrEnum):
    """What a member of an archive can be, once it is known to be safe."""

    FILE = "file"
    LINK = "link"  # a symbolic one
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name below an archive's root.

    size_bytes, blob: of a file, whose blob is named by its SHA-256. target: what a link says; of a
    file that was a hard link, the name that the bytes come under.
    """

    path: str
    kind: EntryKind
    size_bytes: int = 0
    blob: BlobId | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What one archive holds below its root. Paths are relative to it, and were checked.

    whiteouts: names that it removes from what lies under it. opaque: folders (empty: all) of which
    it removes whatever lies under it.
    """

    entries: tuple[Entry, ...]
    whiteouts: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    def carriers(self, wanted: set[BlobId]) -> set[str]:
        """The names under which the bytes of these blobs stand in the archive."""
        return {entry.target or entry.path for entry in self.entries if entry.blob in wanted}


def is_member_blob(blob: BlobId) -> bool:
    """Whether a blob can be a member's: named by its content."""
    return _IDENTITY.fullmatch(blob) is not None


def files_of(
    layers: Sequence[tuple[Archive, Listing]], accepts: Callable[[str], bool]
) -> list[File]:
    """The files that `accepts` wants of the tree that these archives make, sorted by path.

    Raises SourceRefused, naming the file, when plain archives disagree about it, or when a wanted
    link leads nowhere, out of the tree, or round in a circle.
    """
    tree = _Tree()
    for archive, listing in layers:
        tree.add(archive, listing)
    files: list[File] = []
    for path, leaf in tree.files(accepts):
        if len(files) >= ENTRIES_MAX:
            raise SourceRefused(
                f"the archives hold more than {ENTRIES_MAX} files, counted through their links; "
                "exclude some"
            )
        files.append(_file(path, leaf))
    return sorted(files, key=lambda file: file.path)


def member_name(archive: Archive, path: str) -> str:
    """How messages and keys name a member: the layer, and its path in there."""
    inside = f"{archive.root}/{path}" if archive.root else path
    return f"{archive.layer.path}!{inside[:SHOWN_CHARACTERS]}"


def layer_of(model: Manifest, file: File) -> Archive | None:
    """The archive that a file of a model was found in; None for one of its own."""
    layer, mark, _ = file.key.partition(_INSIDE)
    for archive in model.unpacked_from if mark else ():
        if layer == _layer_key(archive):
            return archive
    return None


def name_in_layer(file: File) -> str:
    """The path under which a file of an archive stands there, relative to the archive's root."""
    return file.key.partition(_INSIDE)[2]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A file or a link, and where it comes from."""

    entry: Entry
    archive: Archive


_Folder = dict[str, "_Folder | _Leaf"]
_Parts = tuple[str, ...]


class _LostError(Exception):
    """A link that means nothing in the tree; the message says how."""


@dataclass(slots=True)
class _Tree:
    """Folders as dictionaries, so that removing one is removing one name."""

    root: _Folder = field(default_factory=dict)

    def add(self, archive: Archive, listing: Listing) -> None:
        """Lay one archive over what is there."""
        for path in listing.opaque:
            self._empty(path)
        for path in listing.whiteouts:
            self._remove(path)
        plain = archive.unpacking is Unpacking.PLAIN
        for entry in listing.entries:
            self._put(_Leaf(entry, archive), plain=plain)

    def files(self, accepts: Callable[[str], bool]) -> Iterator[tuple[str, _Leaf]]:
        """Every wanted file by the path a reader sees, links followed."""
        yield from self._walk(self.root, (), [()], accepts)

    # Building

    def _put(self, leaf: _Leaf, *, plain: bool) -> None:
        *parents, name = leaf.entry.path.split("/")
        folder = self.root
        for parent in parents:
            folder = _inner(folder, parent, leaf, plain=plain)
        if leaf.entry.kind is EntryKind.FOLDER:
            _inner(folder, name, leaf, plain=plain)
            return
        there = folder.get(name)
        if plain and there is not None and not _same(there, leaf):
            raise _disagree(leaf, there)
        folder[name] = leaf

    def _empty(self, path: str) -> None:
        if not path:
            self.root.clear()
            return
        folder, name = self._place(path)
        if folder is not None and isinstance(folder.get(name), dict):
            folder[name] = {}

    def _remove(self, path: str) -> None:
        folder, name = self._place(path)
        if folder is not None:
            folder.pop(name, None)

    def _place(self, path: str) -> tuple[_Folder | None, str]:
        *parents, name = path.split("/")
        folder = self.root
        for parent in parents:
            inner = folder.get(parent)
            if not isinstance(inner, dict):
                return None, name
            folder = inner
        return folder, name

    # Reading

    def _walk(
        self, folder: _Folder, at: _Parts, inside: list[_Parts], accepts: Callable[[str], bool]
    ) -> Iterator[tuple[str, _Leaf]]:
        """at: the path a reader sees. inside: the real folders gone through on the way there."""
        for name in sorted(folder):
            node, real = folder[name], (*inside[-1], name)
            path = "/".join((*at, name))
            if isinstance(node, _Leaf) and node.entry.kind is EntryKind.LINK:
                try:
                    node, real = self._meant(node, inside)
                except _LostError as lost:
                    if accepts(path):
                        assert isinstance(node, _Leaf)  # noqa: S101 - nothing was assigned
                        raise SourceRefused(
                            f"{member_name(node.archive, node.entry.path)} is a link that {lost}; "
                            f"exclude {path[:SHOWN_CHARACTERS]}"
                        ) from None
                    continue
            if isinstance(node, dict):
                yield from self._walk(node, (*at, name), [*inside, real], accepts)
            elif accepts(path):
                yield path, node

    def _meant(self, link: _Leaf, inside: list[_Parts]) -> tuple[_Folder | _Leaf, _Parts]:
        """What a link in the last of the folders means. Raises _LostError."""
        follow = _Follow(self.root, link.archive)
        real = follow.follow(inside[-1], link.entry.target)
        if real in inside:
            raise _LostError("leads to a folder that it is in itself")
        return follow.node(real), real


class _Follow:
    """Following links, in paths from the top of an archive. Raises _LostError."""

    def __init__(self, tree: _Folder, archive: Archive) -> None:
        self._tree = tree
        self._root: _Parts = tuple(archive.root.split("/")) if archive.root else ()
        self._image = archive.unpacking is Unpacking.IMAGE

    def follow(self, folder: _Parts, target: str) -> _Parts:
        """Where `target`, found in `folder`, leads; both relative to the archive's root."""
        at = self._start(target, [*self._root, *folder])
        pending = target.split("/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                self._up(at)
            elif part not in {"", "."}:
                at.append(part)
                node = self.node(tuple(at[len(self._root) :])) if self._below(at) else None
                if isinstance(node, _Leaf) and node.entry.kind is EntryKind.LINK:
                    links += 1
                    if links >= LINKS_MAX:
                        raise _LostError("leads round in a circle")
                    at = self._start(node.entry.target, at[:-1])
                    pending.extend(node.entry.target.split("/")[::-1])
        if len(at) < len(self._root):
            raise _LostError(f"leads out of {self._name()}")
        return tuple(at[len(self._root) :])

    def node(self, real: _Parts) -> _Folder | _Leaf:
        """What is there."""
        node: _Folder | _Leaf = self._tree
        for part in real:
            if not isinstance(node, dict) or part not in node:
                raise _LostError("leads nowhere")
            node = node[part]
        return node

    def _start(self, target: str, folder: list[str]) -> list[str]:
        if not target.startswith("/"):
            return folder
        if not self._image:
            raise _LostError(f"leads out of {self._name()}")
        return []

    def _up(self, at: list[str]) -> None:
        if at:
            at.pop()
        elif not self._image:  # in an image, as anywhere, the top is its own parent
            raise _LostError(f"leads out of {self._name()}")

    def _below(self, at: list[str]) -> bool:
        """Whether `at` is below the root, not above it on the way there."""
        shared = min(len(at), len(self._root))
        if tuple(at[:shared]) != self._root[:shared]:
            raise _LostError(f"leads out of {self._name()}")
        return len(at) > len(self._root)

    def _name(self) -> str:
        return "/" + "/".join(self._root) if self._root else "the archive"


def _inner(folder: _Folder, name: str, leaf: _Leaf, *, plain: bool) -> _Folder:
    """The folder of that name, made if need be; `leaf` wants it."""
    inner = folder.get(name)
    if isinstance(inner, dict):
        return inner
    if inner is not None and plain:
        raise _disagree(leaf, inner)
    made: _Folder = {}
    folder[name] = made
    return made


def _same(there: _Folder | _Leaf, leaf: _Leaf) -> bool:
    if isinstance(there, dict) or there.entry.kind is not leaf.entry.kind:
        return False
    if leaf.entry.kind is EntryKind.FILE:
        return there.entry.blob == leaf.entry.blob
    return there.entry.target == leaf.entry.target


def _disagree(leaf: _Leaf, there: _Folder | _Leaf) -> SourceRefused:
    other = there.archive.layer.path if isinstance(there, _Leaf) else "another archive"
    return SourceRefused(
        f"{member_name(leaf.archive, leaf.entry.path)} is something else in {other}; "
        "the origin has to name them apart"
    )


def _file(path: str, leaf: _Leaf) -> File:
    """A file as every source describes one that is known by its SHA-256 alone."""
    entry = leaf.entry
    assert entry.blob is not None  # noqa: S101 - a file has one
    digest = entry.blob.removeprefix(_SHA256)
    return File(
        path,
        entry.size_bytes,
        f"{_layer_key(leaf.archive)}{_INSIDE}{entry.target or entry.path}",
        entry.blob,
        Pin(version=f"sha256:{digest}"),
        (Checksum(Algorithm.SHA256, digest),),
    )


def _layer_key(archive: Archive) -> str:
    return f"sha256:{archive.layer.blob.removeprefix(_SHA256)}"
