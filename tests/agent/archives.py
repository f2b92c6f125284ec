"""Packed models: tars made by GNU tar or by the standard library, and an origin that serves them.

The origin is nginx, asked by the HTTP source; only what it resolves to is the test's: a manifest
whose archives are the layers.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from modelcache.agent import Engine, Snapshot
from modelcache.agent import pulling as pulling_module
from modelcache.agent import repairing as repairing_module
from modelcache.config import Settings
from modelcache.domain.archives import Compression, Unpacking
from modelcache.domain.manifests import Algorithm, Archive, Checksum, File, Manifest, Pin
from modelcache.domain.refs import Ref, parse_ref
from modelcache.sources.http import HttpSource
from tests.agent.support import settings
from tests.store.support import content_id

Change = Callable[[tarfile.TarInfo], None]


def tar_of(
    content: Mapping[str, bytes], *, form: int = tarfile.PAX_FORMAT, extra: Sequence[Any] = ()
) -> bytes:
    """A tar of files, and of what `extra` (members, with their data or none) says."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for name, body in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for info, body in extra:
            tar.addfile(info, io.BytesIO(body) if body is not None else None)
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[Any, bytes | None]:
    """A member without data."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, None


def link(name: str, target: str) -> tuple[Any, bytes | None]:
    return member(name, tarfile.SYMTYPE, target)


def packed(data: bytes, compression: Compression) -> bytes:
    """Compressed as a registry would have it."""
    match compression:
        case Compression.NONE:
            return data
        case Compression.GZIP:
            return gzip.compress(data, 1)
        case Compression.ZSTD:
            return zstandard.ZstdCompressor(1).compress(data)


@dataclass
class Layer:
    """What is served, and what is said of it."""

    data: bytes
    compression: Compression = Compression.GZIP
    unpacking: Unpacking = Unpacking.PLAIN
    root: str = ""
    digest: str = ""  # another than the data's

    def archive(self, number: int, url: str, *, ranges: bool = True) -> Archive:
        digest = self.digest or content_id(self.data).removeprefix("sha256-")
        name = f"layer-{number}.tar"
        file = File(
            name,
            len(self.data),
            f"{url}/{name}",
            content_id(self.data) if not self.digest else content_id(bytes.fromhex(digest)),
            Pin(version=f"sha256:{digest}"),
            (Checksum(Algorithm.SHA256, digest),),
            ranges,
        )
        return Archive(file, self.compression, self.unpacking, self.root)


@dataclass
class PackedOrigin:
    """Where the layers are, and what a pull resolves to."""

    url: str
    root: Path
    layers: list[Layer]
    plain: dict[str, bytes]

    def serve(self, *layers: Layer, plain: Mapping[str, bytes] | None = None) -> None:
        self.layers = list(layers)
        self.plain = dict(plain or {})
        for number, layer in enumerate(layers):
            (self.root / f"layer-{number}.tar").write_bytes(layer.data)
        for name, body in self.plain.items():
            (self.root / name).write_bytes(body)

    def manifest(self, ref: Ref) -> Manifest:
        archives = [layer.archive(number, self.url) for number, layer in enumerate(self.layers)]
        files = [
            raw_file(name, body, f"{self.url}/{name}")
            for name, body in self.plain.items()
            if ref.files.accepts(name)
        ]
        return Manifest.of(str(ref.origin()), files, archives=archives)

    def pull(self, store: Path, query: str = "", **changes: Any) -> Snapshot:
        with Engine(packed_settings(store, **changes)) as engine:
            return engine.pull(parse_ref(f"{self.url}/packed{query}"))


def raw_file(path: str, body: bytes, key: str) -> File:
    """A file known by its SHA-256, as registries and hubs publish it."""
    digest = content_id(body).removeprefix("sha256-")
    pin = Pin(version=f"sha256:{digest}")
    return File(path, len(body), key, content_id(body), pin, (Checksum(Algorithm.SHA256, digest),))


def packed_settings(
    store: Path, *, oci: Mapping[str, Any] | None = None, **kwargs: Any
) -> Settings:
    quota = kwargs.pop("quota_bytes", 0)
    base = settings(store, **kwargs)
    return replace(
        base,
        store=replace(base.store, quota_bytes=quota),
        oci=replace(base.oci, **(oci or {})),
    )


class PackedSource(HttpSource):
    """The HTTP source, but for what it resolves to."""

    origin: PackedOrigin

    def resolve(self, ref: Ref) -> Manifest:
        return self.origin.manifest(ref)


def use(origin: PackedOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pulls and repairs ask this origin."""

    def opened(ref: Ref, chosen: Settings) -> PackedSource:
        source = PackedSource(ref, chosen.http, chosen.transfer)
        source.origin = origin
        return source

    monkeypatch.setattr(pulling_module, "open_source", opened)
    monkeypatch.setattr(repairing_module, "open_source", opened)
