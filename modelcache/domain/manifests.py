"""Manifests: a ref resolved to an immutable list of files, each pinned to what was seen.

The canonical form is JSON with sorted keys, no white space and UTF-8, over everything that decides
what bytes a reader would see: per file its path, size, blob id, pin and published checksums. Its
SHA-256 is the model id. Where to fetch a file (`origin`, `key`) is kept beside it but not hashed,
so the same content-addressed weights at two origins are one model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, NewType

from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.paths import check_path, check_tree
from modelcache.errors import CorruptData, UnsafePath

ModelId = NewType("ModelId", str)  # 64 hex digits
BlobId = NewType("BlobId", str)  # `sha256-<64 hex>` or `origin-<64 hex>`

FORMAT: Final = 1
_CANONICAL: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_BLOB: Final = re.compile(r"(sha256|origin)-[0-9a-f]{64}")
SHORT_ID: Final = 12  # hex digits of a model id that labels and tables show


def is_blob_id(text: str) -> bool:
    """Whether a name can be a blob's: what else lies in a store is not ours."""
    return _BLOB.fullmatch(text) is not None


class Algorithm(StrEnum):
    """Checksums that origins publish."""

    SHA256 = "sha256"
    CRC64NVME = "crc64nvme"
    CRC32C = "crc32c"
    CRC32 = "crc32"
    SHA1 = "sha1"
    GIT_SHA1 = "git-sha1"  # of git's blob object: the bytes behind a header with their number
    MD5 = "md5"

    @property
    def combines(self) -> bool:
        """Whether checksums of neighbouring ranges give the checksum of their union."""
        return self in _COMBINES


_COMBINES: Final = frozenset({Algorithm.CRC64NVME, Algorithm.CRC32C, Algorithm.CRC32})


@dataclass(frozen=True, slots=True)
class Checksum:
    """What an origin says a blob's bytes hash to.

    `value` is lower-case hex. With `parts`, the origin hashed each part of a multipart upload and
    published the hash of the concatenated part hashes: `value` is that, `parts` are the sizes in
    bytes of the parts in order, and `part_values` their own hashes where the origin lists them.
    """

    algorithm: Algorithm
    value: str
    parts: tuple[int, ...] = ()
    part_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pin:
    """What fixes one state of an object at its origin; absent fields were not published.

    etag: as the origin spells it, quotes included. version: S3 version id or what serves as one.
    modified: an HTTP date, or `mtime_ns` digits for a local file. With none of them set, only
    `nonce` (unique to the resolve) tells two states apart: such a file is not resumed or shared.
    """

    etag: str | None = None
    version: str | None = None
    modified: str | None = None
    nonce: str | None = None

    @property
    def holds(self) -> bool:
        """Whether ranges read at different moments can be known to belong together."""
        return bool(self.etag or self.version or self.modified)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model. `key` is its name at the origin (S3 key, URL, absolute path)."""

    path: str
    size_bytes: int
    key: str
    blob: BlobId
    pin: Pin = field(default_factory=Pin)
    checksums: tuple[Checksum, ...] = ()
    ranges: bool = True  # the origin serves byte ranges of it


@dataclass(frozen=True, slots=True)
class Archive:
    """A layer whose files are known only by unpacking it.

    layer: the layer itself; its path is a name for messages. root: only members below this folder
    count, named relative to it; empty for all.
    """

    layer: File
    compression: Compression
    unpacking: Unpacking = Unpacking.PLAIN
    root: str = ""


@dataclass(frozen=True, slots=True)
class Assembly:
    """One published checksum over several blobs and the bytes between them, in order.

    label: what it is the checksum of, for messages.
    """

    label: str
    checksum: Checksum
    pieces: tuple[bytes | BlobId, ...] = field(repr=False)

    @property
    def blobs(self) -> tuple[BlobId, ...]:
        """The blobs among the pieces, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, str))


@dataclass(frozen=True, slots=True)
class Manifest:
    """An immutable list of files, sorted by path. Build one with `Manifest.of`.

    archives: in the order in which they apply. With any, this is not yet a model that can be
    shown: unpacking turns it into one of files alone. assemblies: known to the source that has just
    resolved, and not kept. notes: what that source has to tell whoever asked, not kept either.
    unpacked_from: the archives that some of the files were found in, for mending those; no part of
    what the model is.
    """

    origin: str
    files: tuple[File, ...]
    model_id: ModelId
    archives: tuple[Archive, ...] = ()
    assemblies: tuple[Assembly, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    unpacked_from: tuple[Archive, ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        origin: str,
        files: Iterable[File],
        *,
        archives: Iterable[Archive] = (),
        assemblies: Iterable[Assembly] = (),
        notes: Iterable[str] = (),
        unpacked_from: Iterable[Archive] = (),
    ) -> Manifest:
        """Check, sort and identify. `origin` is the ref without filter, as text.

        Raises UnsafePath for a name that cannot stand in a snapshot.
        """
        ordered = tuple(sorted(files, key=lambda file: file.path))
        for file in ordered:
            check_path(file.path)
        check_tree(file.path for file in ordered)
        packed = tuple(archives)
        content = {"files": [_content(file) for file in ordered], "format": FORMAT}
        if packed:
            content["archives"] = [_archive(archive) for archive in packed]
        model_id = ModelId(sha256(canonical_json(content)).hexdigest())
        return cls(
            origin, ordered, model_id, packed, tuple(assemblies), tuple(notes), tuple(unpacked_from)
        )

    @property
    def size_bytes(self) -> int:
        """Sum of the files' and archives' sizes, a shared blob counted as often as it is listed."""
        layers = sum(archive.layer.size_bytes for archive in self.archives)
        return layers + sum(file.size_bytes for file in self.files)

    def blobs(self) -> dict[BlobId, File]:
        """Each distinct blob with the first file or archive that holds it."""
        found: dict[BlobId, File] = {}
        for file in (*self.files, *(archive.layer for archive in self.archives)):
            found.setdefault(file.blob, file)
        return found

    def to_json(self) -> bytes:
        """The stored form: content and locators."""
        files = [{**_content(file), **_locator(file)} for file in self.files]
        stored: dict[str, Any] = {"files": files, "format": FORMAT, "origin": self.origin}
        for name, archives in (("archives", self.archives), ("unpacked_from", self.unpacked_from)):
            if archives:
                stored[name] = [{**_archive(item), **_locator(item.layer)} for item in archives]
        return canonical_json(stored)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Inverse of `to_json`. Raises CorruptData when the text is not a manifest."""
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT:
                raise CorruptData(
                    f"manifest has format {raw['format']!r}, this version reads {FORMAT}"
                )
            return cls.of(
                _text(raw["origin"]),
                [_file(entry) for entry in raw["files"]],
                archives=[_archive_of(entry) for entry in raw.get("archives", ())],
                unpacked_from=[_archive_of(entry) for entry in raw.get("unpacked_from", ())],
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptData(f"stored manifest is unreadable: {error}") from error
        except UnsafePath as error:  # `of` lets none through, so somebody else wrote it
            raise CorruptData(f"stored manifest is unreadable: {error.message}") from error


def blob_id(
    *, origin: str, key: str, size_bytes: int, pin: Pin, checksums: Iterable[Checksum]
) -> BlobId:
    """Name a blob by the strongest identity its origin publishes.

    A SHA-256 of the whole content names the content, wherever it lies. Otherwise the name is the
    SHA-256 over where it lies and which state of it was pinned; `origin` must therefore tell apart
    two servers that happen to use one bucket name.
    """
    for checksum in checksums:
        if checksum.algorithm is Algorithm.SHA256 and not checksum.parts:
            return BlobId(f"sha256-{checksum.value}")
    state = {"key": key, "origin": origin, "pin": _pin(pin), "size": size_bytes}
    return BlobId("origin-" + sha256(canonical_json(state)).hexdigest())


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, no white space, UTF-8: equal values give equal bytes."""
    return _CANONICAL.encode(value).encode()


def _pin(pin: Pin) -> dict[str, str]:
    named = {"etag": pin.etag, "modified": pin.modified, "nonce": pin.nonce, "version": pin.version}
    return {name: value for name, value in named.items() if value is not None}


def _content(file: File) -> dict[str, Any]:
    return {
        "blob": file.blob,
        "checksums": [_checksum(checksum) for checksum in file.checksums],
        "path": file.path,
        "pin": _pin(file.pin),
        "size": file.size_bytes,
    }


def _locator(file: File) -> dict[str, Any]:
    return {"key": file.key, "ranges": file.ranges}


def _archive(archive: Archive) -> dict[str, Any]:
    return {
        **_content(archive.layer),
        "compression": archive.compression.value,
        "root": archive.root,
        "unpacking": archive.unpacking.value,
    }


def _archive_of(entry: Mapping[str, Any]) -> Archive:
    return Archive(
        _file(entry),
        Compression(entry["compression"]),
        Unpacking(entry["unpacking"]),
        _text(entry["root"]),
    )


def _checksum(checksum: Checksum) -> dict[str, Any]:
    plain: dict[str, Any] = {"algorithm": checksum.algorithm.value, "value": checksum.value}
    if checksum.parts:
        plain["parts"] = list(checksum.parts)
        plain["part_values"] = list(checksum.part_values)
    return plain


def _file(entry: Mapping[str, Any]) -> File:
    size, blob = entry["size"], entry["blob"]
    if type(size) is not int or size < 0:
        raise ValueError("a size is not a number of bytes")
    if not is_blob_id(blob):  # it becomes a path in the store
        raise ValueError("a blob id is malformed")
    return File(
        path=_text(entry["path"]),
        size_bytes=size,
        key=_text(entry["key"]),
        blob=BlobId(blob),
        pin=Pin(**{name: _text(value) for name, value in entry["pin"].items()}),
        checksums=tuple(_checksum_of(raw) for raw in entry["checksums"]),
        ranges=bool(entry["ranges"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return value


def _checksum_of(raw: Mapping[str, Any]) -> Checksum:
    return Checksum(
        Algorithm(raw["algorithm"]),
        _text(raw["value"]),
        tuple(raw.get("parts", ())),
        tuple(raw.get("part_values", ())),
    )
