"""The files and archives that the layers of one manifest make.

Raw layers and members of uncompressed tars become files, whose bytes the engine reads where they
lie. Whatever has to be unpacked becomes an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from modelcache.config import BLOCK_BYTES
from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.manifests import Algorithm, Archive, Assembly, BlobId, Checksum, File, Pin
from modelcache.domain.paths import check_path
from modelcache.domain.refs import FileFilter
from modelcache.sources.oci.blobs import Blobs, NoRanges
from modelcache.sources.oci.documents import Descriptor
from modelcache.sources.oci.layers import (
    MAGIC_BYTES,
    Form,
    Layer,
    compression_of,
    file_name,
)
from modelcache.sources.oci.tars import Scanned, scan

SCANS_MAX: Final = 8  # tars whose headers are read at once
LITERAL_BYTES_MAX: Final = 64 << 20  # of all assemblies together; they stay in memory


@dataclass(slots=True)
class Contents:
    """What a manifest holds. any_below: whether there was anything below the ref's path at all."""

    files: list[File] = field(default_factory=list)
    archives: list[Archive] = field(default_factory=list)
    assemblies: list[Assembly] = field(default_factory=list)
    any_below: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """Which files a ref means. below: a folder or one file; empty for everything."""

    below: str
    files: FileFilter

    def path(self, path: str) -> str | None:
        """The path that a file of the artifact has in the model, or None where it is none of it."""
        if not self.below:
            return path
        if path == self.below:
            return path.rpartition("/")[2]
        inside = f"{self.below}/"
        return path[len(inside) :] if path.startswith(inside) else None


def contents_of(layers: Sequence[Layer], choice: Choice, blobs: Blobs, where: str) -> Contents:
    """Decide for each layer. Small reads only, several layers at once. Raises as they do."""
    contents = Contents()
    literal_bytes = 0
    looked_at = _look(layers, blobs, where)
    for layer, compression, scanned in looked_at:
        if layer.form is Form.RAW:
            _add(contents, [_raw(layer, blobs)], choice)
            continue
        literal_bytes += _literal_bytes(scanned)
        if scanned is None or literal_bytes > LITERAL_BYTES_MAX or _leaves_out(scanned, choice):
            contents.archives.append(_archive(layer, compression, choice.below, blobs))
            continue
        _add(contents, scanned.files, choice)
        if scanned.assembly is not None:
            contents.assemblies.append(scanned.assembly)
    return contents


def _look(
    layers: Sequence[Layer], blobs: Blobs, where: str
) -> list[tuple[Layer, Compression, Scanned | None]]:
    def look(layer: Layer) -> tuple[Layer, Compression, Scanned | None]:
        if layer.form is Form.RAW:
            return layer, Compression.NONE, None
        compression = layer.compression if layer.told else _told_by_bytes(layer.descriptor, blobs)
        if layer.form is Form.IMAGE or compression is not Compression.NONE:
            return layer, compression, None
        return layer, compression, _scan(layer.descriptor, blobs, where)

    unclear = sum(not layer.told for layer in layers)
    if unclear <= 1:
        return [look(layer) for layer in layers]
    pool = ThreadPoolExecutor(min(SCANS_MAX, unclear), "modelcache-scan")
    try:
        return list(pool.map(look, layers))
    finally:
        pool.shutdown(cancel_futures=True)


def _told_by_bytes(layer: Descriptor, blobs: Blobs) -> Compression:
    """How a layer is compressed whose media type does not say so, or says it wrongly."""
    if layer.size_bytes < MAGIC_BYTES:
        return Compression.NONE
    try:
        return compression_of(blobs.read(layer, 0, MAGIC_BYTES))
    except NoRanges as error:
        return compression_of(error.first_bytes)


def _scan(layer: Descriptor, blobs: Blobs, where: str) -> Scanned | None:
    try:
        return scan(layer, lambda start, end: blobs.read(layer, start, end), where)
    except NoRanges:
        return None


def _raw(layer: Layer, blobs: Blobs) -> File:
    check_path(layer.path)
    return layer_file(layer.descriptor, layer.path, blobs)


def layer_file(layer: Descriptor, path: str, blobs: Blobs) -> File:
    """A whole layer as a file. Small ones are read in one piece, so ranges do not matter there."""
    value = layer.digest.removeprefix("sha256:")
    ranges = layer.size_bytes <= BLOCK_BYTES or blobs.has_ranges(layer)
    return File(
        path,
        layer.size_bytes,
        layer.digest,
        BlobId(f"sha256-{value}"),
        Pin(version=layer.digest),
        (Checksum(Algorithm.SHA256, value),),
        ranges,
    )


def _archive(layer: Layer, compression: Compression, below: str, blobs: Blobs) -> Archive:
    descriptor = layer.descriptor
    file = layer_file(descriptor, file_name(descriptor, compression), blobs)
    unpacking = Unpacking.IMAGE if layer.form is Form.IMAGE else Unpacking.PLAIN
    return Archive(file, compression, unpacking, below)


def _add(contents: Contents, files: Sequence[File], choice: Choice) -> None:
    for file in files:
        path = choice.path(file.path)
        if path is None:
            continue
        contents.any_below = True
        if choice.files.accepts(path):
            contents.files.append(replace(file, path=path))


def _leaves_out(scanned: Scanned, choice: Choice) -> bool:
    """Whether the ref leaves out a member without which the layer's digest cannot be checked."""
    if scanned.assembly is None:
        return False
    wanted = set()
    for file in scanned.files:
        path = choice.path(file.path)
        if path is not None and choice.files.accepts(path):
            wanted.add(file.blob)
    return not wanted.issuperset(scanned.assembly.blobs)


def _literal_bytes(scanned: Scanned | None) -> int:
    if scanned is None or scanned.assembly is None:
        return 0
    return sum(len(p) for p in scanned.assembly.pieces if isinstance(p, bytes))
