"""What a pushed model looks like in a registry: its layers' descriptors, its config, its manifest.

ModelPack (the CNCF's `application/vnd.cncf.model.*`), or a plain artifact whose files have names as
oras gives them. Everything here is a function of the files' bytes and names and of what the user
wrote: no clock, no owner, no mode. So equal input gives an equal manifest, and a digest that
says something.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from modelcache.domain.manifests import canonical_json
from modelcache.sources.oci.documents import OCI_MANIFEST
from modelcache.sources.oci.kinds import Kind, kind_of
from modelcache.sources.oci.outgoing import FILE_MODE, Outgoing, digest_of, tar_around

MODEL_ARTIFACT: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
PLAIN_ARTIFACT: Final = "application/vnd.modelcache.files.v1"
EMPTY_CONFIG: Final = "application/vnd.oci.empty.v1+json"
OCTETS: Final = "application/octet-stream"

TITLE: Final = "org.opencontainers.image.title"
FILEPATH: Final = "org.cncf.model.filepath"
METADATA: Final = "org.cncf.model.file.metadata+json"
UNTESTED: Final = "org.cncf.model.file.mediatype.untested"
CREATED: Final = "org.opencontainers.image.created"


class PushFormat(StrEnum):
    """How a model is described."""

    MODELPACK = "modelpack"
    ORAS = "oras"


class LayerForm(StrEnum):
    """What the bytes of a layer are."""

    RAW = "raw"
    TAR = "tar"


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer that the registry has."""

    layer: Outgoing
    digest: str

    @property
    def descriptor(self) -> dict[str, Any]:
        """As a manifest lists it."""
        return {
            "mediaType": self.layer.media_type,
            "digest": self.digest,
            "size": self.layer.size_bytes,
            "annotations": dict(self.layer.annotations),
        }


@dataclass(frozen=True, slots=True)
class Document:
    """A config or manifest as it is pushed."""

    media_type: str
    data: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """Of its bytes."""
        return digest_of(self.data)


def pack_file(
    name: str,
    file: Path,
    file_bytes: int,
    *,
    packing: PushFormat,
    form: LayerForm,
    digest: str | None = None,
) -> Outgoing:
    """One file as a layer. digest: of the file's bytes, where it is known."""
    if packing is PushFormat.ORAS:
        return Outgoing(name, OCTETS, file, file_bytes, {TITLE: name}, digest=digest)
    kind, told = kind_of(name, file_bytes)
    annotations = {FILEPATH: name, METADATA: _metadata(name, file_bytes)}
    if not told:
        annotations[UNTESTED] = "true"
    media_type = f"application/vnd.cncf.model.{kind}.v1.{form}"
    if form is LayerForm.RAW:
        annotations[TITLE] = name  # for oras and others, who know no other name
        return Outgoing(name, media_type, file, file_bytes, annotations, digest=digest)
    head, tail = tar_around(name, file_bytes)
    return Outgoing(name, media_type, file, file_bytes, annotations, head, tail)


def config_document(
    packing: PushFormat, layers: Sequence[Packed], about: Mapping[str, Mapping[str, Any]]
) -> Document:
    """The config. about: `descriptor` and `config` of ModelPack, as far as they are known."""
    if packing is PushFormat.ORAS:
        return Document(EMPTY_CONFIG, b"{}")
    content = {
        "descriptor": dict(about.get("descriptor", {})),
        "config": dict(about.get("config", {})),
        # No layer is compressed, so what the specification wants hashed is what was sent.
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
    return Document(MODEL_CONFIG, canonical_json(content))


def manifest_document(
    packing: PushFormat,
    layers: Sequence[Packed],
    config: Document,
    annotations: Mapping[str, str],
) -> Document:
    """The manifest. Its keys are sorted, whatever order they were given in."""
    modelpack = packing is PushFormat.MODELPACK
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL_ARTIFACT if modelpack else PLAIN_ARTIFACT,
        "config": {
            "mediaType": config.media_type,
            "digest": config.digest,
            "size": len(config.data),
        },
        "layers": [layer.descriptor for layer in layers],
    }
    if annotations:
        content["annotations"] = dict(annotations)
    return Document(OCI_MANIFEST, canonical_json(content))


def layer_sizes(manifest: bytes) -> dict[int, str]:
    """Sizes of a manifest's layers, with their digests; empty for what is no manifest."""
    try:
        document: Any = json.loads(manifest)
        layers: Iterable[Any] = document["layers"]
        return {int(layer["size"]): str(layer["digest"]) for layer in layers}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def weights_of(layers: Iterable[Outgoing]) -> list[Outgoing]:
    """Those that hold weights."""
    return [layer for layer in layers if kind_of(layer.name, layer.file_bytes)[0] is Kind.WEIGHT]


def _metadata(name: str, file_bytes: int) -> str:
    """As modctl writes it; but for the times and owners of whatever machine this is."""
    return json.dumps(
        {
            "name": name.rpartition("/")[2],
            "mode": FILE_MODE,
            "uid": 0,
            "gid": 0,
            "size": file_bytes,
            "mtime": "1970-01-01T00:00:00Z",
            "typeflag": 0,  # a regular file
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
