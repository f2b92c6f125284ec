"""Artifacts in a registry, put there by oras: files by name, or layers and manifests by hand."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.servers.process import find_program

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"


class Repository:
    """A repository of a registry without TLS. oras keeps nothing between calls."""

    def __init__(self, registry: str, name: str, folder: Path) -> None:
        """folder: for files on their way. registry: host:port."""
        self.registry = registry
        self.name = name
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._program = find_program("oras", "run `python -m tests.tools`")

    def ref(self, tag: str = "latest") -> str:
        """The artifact's name, as oras and crane take it."""
        return f"{self.registry}/{self.name}:{tag}"

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """Run oras. Its output."""
        command = [self._program, *arguments, "--plain-http"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def push(self, files: Mapping[str, bytes], *, tag: str = "latest", extra: Sequence[str] = ()):
        """Push files by name, as a user of oras does."""
        for name, content in files.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.run("push", *extra, self.ref(tag), *files, folder=self._folder)

    def blob(
        self, content: bytes, media_type: str, annotations: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Push a blob; its descriptor."""
        path = self._folder / "blob"
        path.write_bytes(content)
        found = descriptor(content, media_type, annotations)
        self.run("blob", "push", f"{self.registry}/{self.name}@{found['digest']}", str(path))
        return found

    def manifest(
        self,
        layers: Sequence[Mapping[str, Any]],
        *,
        tag: str = "latest",
        artifact_type: str = "",
        config_type: str = EMPTY_CONFIG,
        config: bytes = b"{}",
        media_type: str = MANIFEST,
    ) -> dict[str, Any]:
        """Push a manifest over layers; its descriptor."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.blob(config, config_type),
            "layers": list(layers),
        }
        if artifact_type:
            document["artifactType"] = artifact_type
        return self.document(document, tag=tag, media_type=media_type)

    def index(self, manifests: Sequence[Mapping[str, Any]], *, tag: str = "latest"):
        """Push an index; its descriptor."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}
        return self.document(document, tag=tag, media_type=INDEX)

    def document(self, document: Mapping[str, Any], *, tag: str, media_type: str):
        """Push a document of any kind; its descriptor."""
        content = json.dumps(document).encode()
        path = self._folder / "document.json"
        path.write_bytes(content)
        self.run("manifest", "push", "--media-type", media_type, self.ref(tag), str(path))
        return descriptor(content, media_type)


def descriptor(
    content: bytes, media_type: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a manifest says of these bytes."""
    found: dict[str, Any] = {
        "mediaType": media_type,
        "digest": "sha256:" + sha256(content).hexdigest(),
        "size": len(content),
    }
    return found | ({"annotations": dict(annotations)} if annotations else {})


def tar_of(
    members: Mapping[str, bytes], *, more: Sequence[tarfile.TarInfo] = (), form: int | None = None
) -> bytes:
    """An uncompressed tar; `more` are members without content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form or tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return packed.getvalue()
