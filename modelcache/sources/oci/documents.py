"""Manifests and indexes of registries: read, bounded, checked against their digest, and parsed.

OCI's and Docker's (schema 2) differ in nothing but the names of media types. A document comes from
the network: every field is looked at before it is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from modelcache.errors import DigestMismatch, SourceRefused
from modelcache.sources.oci.refusals import is_page

DOCUMENT_BYTES_MAX: Final = 4 << 20  # what registries accept
LAYER_BYTES_MAX: Final = 1 << 50
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_ACCEPTED: Final = (
    OCI_MANIFEST,
    OCI_INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ACCEPT: Final = ", ".join(_ACCEPTED)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9!#$&^_.+-]+")
_SHOWN: Final = 80  # characters of a foreign text in a message


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and its variant, as an index names them."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """`linux/arm64/v8`."""
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of another one or of a layer."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None

    @property
    def short(self) -> str:
        """The digest, short enough for a message."""
        return self.digest[: len("sha256:") + 12]


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests to choose from."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """Config and layers of an image or artifact. artifact_type: empty where it names none."""

    artifact_type: str
    config_type: str
    layers: tuple[Descriptor, ...]


def check_document(where: str, asked: str | None, published: str, body: bytes) -> str:
    """The digest of a document's bytes, compared with those asked for and published.

    published: Docker-Content-Digest, or empty. Raises DigestMismatch.
    """
    found = "sha256:" + sha256(body).hexdigest()
    for expected in (asked, published):
        if expected and expected.startswith("sha256:") and expected != found:
            raise DigestMismatch(
                f"{where}: the manifest's bytes do not have the digest {expected[:19]}… that they "
                "should; the registry or something before it altered them"
            )
    return found


def parse_document(where: str, headers: Mapping[str, str], body: bytes) -> ImageManifest | Index:
    """Read a manifest or an index. Raises SourceRefused, saying what it is instead."""
    try:
        raw: Any = json.loads(body)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        what = "a web page" if is_page(headers) else "something that is not JSON"
        raise SourceRefused(
            f"{where}: the answer is {what} instead of a manifest; is it an OCI registry?"
        )
    if raw.get("schemaVersion") == 1:
        raise SourceRefused(
            f"{where} has a manifest of Docker's schema 1, which tells too little; push it again "
            "with a tool of this decade"
        )
    match raw:
        case {"manifests": list(entries)}:
            return Index(tuple(_descriptor(where, entry) for entry in entries))
        case {"layers": list(entries)}:
            config = raw.get("config")
            config_type = config.get("mediaType") if isinstance(config, dict) else ""
            return ImageManifest(
                _media_type(raw.get("artifactType")) or "",
                _media_type(config_type) or "",
                tuple(_descriptor(where, entry) for entry in entries),
            )
        case _:
            raise SourceRefused(
                f"{where} is neither an image manifest nor an index "
                f"({_media_type(raw.get('mediaType')) or 'of unknown type'})"
            )


def _descriptor(where: str, raw: object) -> Descriptor:
    if not isinstance(raw, dict):
        raise SourceRefused(f"{where}: the manifest is malformed (an entry is no descriptor)")
    digest, size_bytes = raw.get("digest"), raw.get("size")
    media_type = _media_type(raw.get("mediaType"))
    if not isinstance(digest, str) or media_type is None:
        raise SourceRefused(f"{where}: the manifest is malformed (a descriptor is incomplete)")
    if not _DIGEST.fullmatch(digest):
        raise SourceRefused(
            f"{where}: {digest[:_SHOWN]!r} is not a sha256 digest; no other kind can be checked"
        )
    if type(size_bytes) is not int or not 0 <= size_bytes <= LAYER_BYTES_MAX:
        raise SourceRefused(f"{where}: the manifest gives {digest[:19]}… no size that can be")
    annotations = raw.get("annotations")
    texts = annotations if isinstance(annotations, dict) else {}
    return Descriptor(
        media_type,
        digest,
        size_bytes,
        {name: text for name, text in texts.items() if isinstance(text, str)},
        _platform(raw.get("platform")),
    )


def _media_type(value: object) -> str | None:
    if not isinstance(value, str) or not _MEDIA_TYPE.fullmatch(value):
        return None
    return value.lower()


def _platform(raw: object) -> Platform | None:
    if not isinstance(raw, dict):
        return None
    values = [raw.get(name, "") for name in ("os", "architecture", "variant")]
    if not all(isinstance(value, str) for value in values):
        return None
    shown = [re.sub(r"[^\x21-\x7e]", "?", value[:_SHOWN]) for value in values]
    return Platform(*shown) if shown[0] and shown[1] else None
