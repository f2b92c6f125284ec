"""What the layers of a manifest are: files as they stand, tars of files, or parts of an image.

Four conventions are known: ModelPack (`application/vnd.cncf.model.*`, and `vnd.cnai` before it),
KitOps (`application/vnd.kitops.modelkit.*`), plain artifacts as oras pushes them, whose files have
their names in annotations, and container images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from modelcache.domain.archives import Compression
from modelcache.errors import SourceRefused
from modelcache.sources.oci.documents import Descriptor, ImageManifest

_IMAGE_CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_IMAGE_LAYER: Final = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd))?"
)
_ELSEWHERE: Final = re.compile(r"\.(?:nondistributable|foreign)\.")
_MODEL: Final = re.compile(r"application/vnd\.(?:cncf\.model|cnai\.model|kitops\.modelkit)\.")
_TAR: Final = re.compile(r"[.+](?:tar|tgz)(?:[.+](gzip|zstd))?$|\+(gzip|zstd)$")
_EMPTY: Final = "application/vnd.oci.empty.v1+json"
# The first of these that a layer has is its name.
_NAMES: Final = (
    "org.cncf.model.filepath",
    "org.cnai.model.filepath",
    "org.opencontainers.image.title",
)
_UNPACK: Final = "io.deis.oras.content.unpack"
_MAGIC: Final = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)
MAGIC_BYTES: Final = 4


class Form(Enum):
    """What the bytes of a layer are."""

    RAW = "a file"
    TAR = "a tar of files"
    IMAGE = "a layer of a container image"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer understood. path: of a raw file. compression: as its media type has it.

    told: whether the media type can be trusted with the compression; else the bytes tell.
    """

    descriptor: Descriptor
    form: Form
    path: str = ""
    compression: Compression = Compression.NONE
    told: bool = True


def understand(manifest: ImageManifest, where: str) -> list[Layer]:
    """What each layer is, in order. Raises SourceRefused for what cannot be a model's."""
    if is_image(manifest):
        return [_image_layer(layer, where) for layer in manifest.layers]
    layers = [layer for layer in manifest.layers if layer.media_type != _EMPTY]
    if not layers:
        raise SourceRefused(f"{where} is an artifact without layers; there is nothing to pull")
    return [_artifact_layer(layer, where) for layer in layers]


def is_image(manifest: ImageManifest) -> bool:
    """Whether this is a container image: by its config, and by layers that are all of that kind.

    Some artifacts borrow the config's media type; what they call their files tells.
    """
    if manifest.config_type not in _IMAGE_CONFIGS:
        return False
    return not any(_MODEL.match(layer.media_type) for layer in manifest.layers) and not (
        manifest.layers and all(_name(layer) for layer in manifest.layers)
    )


def compression_of(first_bytes: bytes) -> Compression:
    """What the first MAGIC_BYTES of a layer say."""
    for magic, compression in _MAGIC:
        if first_bytes.startswith(magic):
            return compression
    return Compression.NONE


def file_name(layer: Descriptor, compression: Compression) -> str:
    """A name for an archive, for messages."""
    endings = {Compression.NONE: "tar", Compression.GZIP: "tar.gz", Compression.ZSTD: "tar.zst"}
    return f"sha256-{layer.digest.removeprefix('sha256:')[:12]}.{endings[compression]}"


def _image_layer(layer: Descriptor, where: str) -> Layer:
    if _ELSEWHERE.search(layer.media_type):
        raise SourceRefused(
            f"{where}: layer {layer.short} may not be distributed by registries "
            f"({layer.media_type}); build the image without such layers"
        )
    if not _IMAGE_LAYER.fullmatch(layer.media_type):
        raise _unknown(layer, where)
    return _tar(layer, Form.IMAGE)


def _artifact_layer(layer: Descriptor, where: str) -> Layer:
    name = _name(layer)
    if _MODEL.match(layer.media_type):
        if _TAR.search(layer.media_type):
            return _tar(layer, Form.TAR)
        if not layer.media_type.endswith(".raw"):
            raise _unknown(layer, where)
        if not name:
            raise SourceRefused(
                f"{where}: layer {layer.short} has no name; {_NAMES[0]} should hold it"
            )
    elif layer.annotations.get(_UNPACK, "").lower() == "true" or not name:
        if not name and not _IMAGE_LAYER.fullmatch(layer.media_type):
            raise _unknown(layer, where)
        return _tar(layer, Form.TAR)
    return Layer(layer, Form.RAW, name)


def _tar(layer: Descriptor, form: Form) -> Layer:
    """A tar, whose compression a media type names reliably only where it names one."""
    match = _TAR.search(layer.media_type)
    compression = (match[1] or match[2]) if match else None
    if compression is None:
        return Layer(layer, form, told=False)
    return Layer(layer, form, compression=Compression(compression))


def _name(layer: Descriptor) -> str:
    for annotation in _NAMES:
        name = layer.annotations.get(annotation)
        if name:
            return name.removeprefix("./")
    return ""


def _unknown(layer: Descriptor, where: str) -> SourceRefused:
    return SourceRefused(
        f"{where}: layer {layer.short} is of a kind that is not known here ({layer.media_type}) "
        f"and has no name in {_NAMES[-1]}"
    )
