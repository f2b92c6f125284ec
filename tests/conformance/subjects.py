"""The origins that the conformance suite runs against, behind one small interface.

A new source joins by one class and one line in `SUBJECTS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from modelcache.config import Settings
from modelcache.domain.refs import Ref, parse_ref
from modelcache.sources.opening import open_source
from modelcache.sources.source import Source
from tests.servers.docker_registry import DockerRegistry
from tests.servers.fake_gcs import FakeGcs, gcs_client
from tests.servers.hub import Hub
from tests.servers.nginx import Nginx
from tests.servers.process import ServerUnavailable
from tests.servers.uploads import S3Server, s3_client
from tests.sources.artifacts import TITLE, Repository

_numbers = count()


class SourceUnderTest(Protocol):
    """An empty place at an origin that a test may fill, and refs to what is in it.

    Names are relative, with slashes. `keeps_empty_directories` and the like are not promised.
    """

    name: str
    content_addressed: bool = False
    """Whether what was pinned stays as it was, whatever is published after."""

    def put(self, name: str, content: bytes) -> None:
        """Create or replace a file; a replaced one differs to whoever pinned it."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file."""
        ...

    def publish(self) -> None:
        """Called when the test has put what it wants listed."""
        ...

    def tree(self, below: str = "") -> Ref:
        """Names everything below a folder."""
        ...

    def file(self, name: str) -> Ref:
        """Names one file."""
        ...


def open_for(ref: Ref) -> Source:
    """A source as the engine opens it, with default settings."""
    return open_source(ref.origin(), Settings())


@cache
def _client(server: S3Server) -> Any:
    """One for all tests: making one costs a tenth of a second."""
    return s3_client(server)


class S3Subject:
    """A bucket of its own on an S3 server."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.name = name
        self._client = _client(server)
        self._endpoint = server.url
        self._bucket = f"conformance-{next(_numbers)}"
        self._client.create_bucket(Bucket=self._bucket)

    def put(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"model/{name}", Body=content)

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=f"model/{name}")

    def publish(self) -> None:
        """Listings are always up to date."""

    def tree(self, below: str = "") -> Ref:
        return self._ref(f"model/{below}".rstrip("/"))

    def file(self, name: str) -> Ref:
        return self._ref(f"model/{name}")

    def _ref(self, path: str) -> Ref:
        return parse_ref(f"s3://{self._bucket}/{quote(path)}?endpoint={self._endpoint}")


@cache
def _gcs_client(url: str) -> Any:
    return gcs_client(url)


class GcsSubject:
    """A bucket of its own on a GCS emulator, filled by Google's client."""

    name = "gcs"

    def __init__(self, server: FakeGcs) -> None:
        self._endpoint = server.url
        self._bucket = _gcs_client(server.url).create_bucket(f"conformance-{next(_numbers)}")

    def put(self, name: str, content: bytes) -> None:
        self._bucket.blob(f"model/{name}").upload_from_string(content, checksum="crc32c")

    def remove(self, name: str) -> None:
        self._bucket.blob(f"model/{name}").delete()

    def publish(self) -> None:
        """Listings are always up to date."""

    def tree(self, below: str = "") -> Ref:
        return self._ref(f"model/{below}".rstrip("/"))

    def file(self, name: str) -> Ref:
        return self._ref(f"model/{name}")

    def _ref(self, path: str) -> Ref:
        return parse_ref(f"gs://{self._bucket.name}/{quote(path)}?endpoint={self._endpoint}")


class FileSubject:
    """A directory."""

    name = "file"

    def __init__(self, root: Path) -> None:
        self._root = root / "model"
        self._root.mkdir()

    def put(self, name: str, content: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name[:100]}.new")
        fresh.write_bytes(content)
        stamp_ns = (1_700_000_000 + next(_numbers)) * 10**9  # clocks may be coarser than a test
        os.utime(fresh, ns=(stamp_ns, stamp_ns))
        fresh.rename(path)

    def remove(self, name: str) -> None:
        (self._root / name).unlink()

    def publish(self) -> None:
        """A directory is its own listing."""

    def tree(self, below: str = "") -> Ref:
        return parse_ref(f"file://{quote(str(self._root / below))}")

    def file(self, name: str) -> Ref:
        return self.tree(name)


class HttpSubject(FileSubject):
    """nginx over a directory, with a JSON index of our own form beside the files."""

    name = "http"

    def __init__(self, root: Path, server: Nginx) -> None:
        super().__init__(root)
        self._server = server

    def publish(self) -> None:
        for folder in [self._root, *filter(Path.is_dir, self._root.rglob("*"))]:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            listed = [
                {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
                | {"url": quote(path.relative_to(folder).as_posix())}
                for path in files
                if path.name != "index.html"
            ]
            (folder / "index.html").write_text(json.dumps({"files": listed}))

    def tree(self, below: str = "") -> Ref:
        folder = f"model/{below}".rstrip("/")
        return parse_ref(f"{self._server.url}/{quote(folder)}/#index")

    def file(self, name: str) -> Ref:
        return parse_ref(f"{self._server.url}/model/{quote(name)}")


class HfSubject:
    """A repository on a hub. What is put over a published file changes the very commit.

    No honest hub does that; a mirror that does must be found out.
    """

    name = "hf"

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._name = f"conformance/model-{next(_numbers)}"
        self._files: dict[str, bytes] = {}
        self._commit = ""

    def put(self, name: str, content: bytes) -> None:
        self._files[f"model/{name}"] = content
        self._published()[f"model/{name}"] = content

    def remove(self, name: str) -> None:
        del self._files[f"model/{name}"]
        del self._published()[f"model/{name}"]

    def publish(self) -> None:
        self._commit = self._hub.repository(self._name).commit(self._files)

    def tree(self, below: str = "") -> Ref:
        return self._ref(f"model/{below}".rstrip("/"))

    def file(self, name: str) -> Ref:
        return self._ref(f"model/{name}")

    def _published(self) -> dict[str, bytes]:
        """The files of the last commit."""
        return self._hub.repository(self._name).commits.get(self._commit, {})

    def _ref(self, path: str) -> Ref:
        if not self._commit:
            self.publish()
        return parse_ref(f"hf://{self._name}/{quote(path)}?endpoint={self._hub.url}")


class OciSubject:
    """An artifact in a registry, its files raw layers, pushed by oras when it is asked for."""

    name = "oci"
    content_addressed = True

    def __init__(self, server: DockerRegistry, folder: Path) -> None:
        self._repository = Repository(server.name, f"conformance/model-{next(_numbers)}", folder)
        self._layers: dict[str, dict[str, Any]] = {}
        self._published = False

    def put(self, name: str, content: bytes) -> None:
        layer = self._repository.blob(content, "application/octet-stream", {TITLE: name})
        self._layers[name] = layer
        self._published = False

    def remove(self, name: str) -> None:
        layer = self._layers.pop(name)
        blob = f"{self._repository.registry}/{self._repository.name}@{layer['digest']}"
        self._repository.run("blob", "delete", "--force", blob)

    def publish(self) -> None:
        self._repository.manifest(list(self._layers.values()), artifact_type="application/x.test")
        self._published = True

    def tree(self, below: str = "") -> Ref:
        return self.file(below) if below else self._ref("")

    def file(self, name: str) -> Ref:
        return self._ref(f"?path={quote(name, safe='')}")

    def _ref(self, options: str) -> Ref:
        if not self._published:
            self.publish()
        return parse_ref(f"oci://{self._repository.ref()}{options}")


def _s3(fixture: str) -> Callable[[pytest.FixtureRequest], SourceUnderTest]:
    return lambda request: S3Subject(request.getfixturevalue(fixture), fixture)


def _gcs(request: pytest.FixtureRequest) -> SourceUnderTest:
    return GcsSubject(request.getfixturevalue("fake_gcs"))


def _oci(request: pytest.FixtureRequest) -> SourceUnderTest:
    try:
        folder = request.getfixturevalue("tmp_path") / "oras"
        return OciSubject(request.getfixturevalue("docker_registry"), folder)
    except ServerUnavailable as error:
        pytest.skip(str(error))


def _file(request: pytest.FixtureRequest) -> SourceUnderTest:
    return FileSubject(request.getfixturevalue("tmp_path"))


def _http(request: pytest.FixtureRequest) -> SourceUnderTest:
    server, root = request.getfixturevalue("web")
    return HttpSubject(root, server)


def _hf(request: pytest.FixtureRequest) -> SourceUnderTest:
    return HfSubject(request.getfixturevalue("hub"))


SUBJECTS: dict[str, Callable[[pytest.FixtureRequest], SourceUnderTest]] = {
    "minio": _s3("minio"),
    "rclone": _s3("rclone_s3"),
    "moto": _s3("moto"),
    "gcs": _gcs,
    "file": _file,
    "http": _http,
    "hf": _hf,
    "oci": _oci,
}
