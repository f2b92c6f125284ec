"""Fixtures: real servers for a session, and a machine without anybody's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from tests.servers.certificates import Certificates, make_certificates
from tests.servers.crane_registry import CraneRegistry
from tests.servers.docker_registry import DockerRegistry
from tests.servers.fake_gcs import FakeGcs
from tests.servers.hub import Hub
from tests.servers.minio import Minio
from tests.servers.moto import Moto
from tests.servers.nginx import Nginx
from tests.servers.process import Server, ServerUnavailable
from tests.servers.rclone_s3 import RcloneS3

AnyServer = TypeVar("AnyServer", bound=Server)
# A machine that is busy with something else is no failure.
settings.register_profile("modelcache", deadline=None)
settings.load_profile("modelcache")
_OWN = ("AWS_", "CLOUDSDK_", "DOCKER_", "GCE_", "GOOGLE_", "MODELCACHE_", "STORAGE_EMULATOR_HOST")


@pytest.fixture(autouse=True)
def own_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No credentials, configuration or proxies of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(_OWN) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


def _running(server: type[Server]) -> Iterator[Server]:
    try:
        with server() as running:
            yield running
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def minio_server() -> Iterator[Server]:
    """One MinIO for the session; tests make buckets of their own."""
    yield from _running(Minio)


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[Server]:
    """One `rclone serve s3` for the session."""
    yield from _running(RcloneS3)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Server]:
    """One moto for the session."""
    yield from _running(Moto)


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[Server]:
    """One GCS emulator for the session; tests make buckets of their own."""
    yield from _running(FakeGcs)


@pytest.fixture(scope="session")
def docker_registry() -> Iterator[Server]:
    """One of Docker's registries for the session; tests make repositories of their own."""
    yield from _running(DockerRegistry)


@pytest.fixture(scope="session")
def crane_registry() -> Iterator[Server]:
    """One of crane's registries for the session."""
    yield from _running(CraneRegistry)


@pytest.fixture
def minio(minio_server: Minio, monkeypatch: pytest.MonkeyPatch) -> Minio:
    """MinIO, with its credentials in the environment."""
    return _with_credentials(minio_server, monkeypatch)


@pytest.fixture
def rclone_s3(rclone_server: RcloneS3, monkeypatch: pytest.MonkeyPatch) -> RcloneS3:
    """rclone's S3 server, with its credentials in the environment."""
    return _with_credentials(rclone_server, monkeypatch)


@pytest.fixture
def moto(moto_server: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    """moto, with its credentials in the environment."""
    return _with_credentials(moto_server, monkeypatch)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and a certificate for 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Nginx, Path]]:
    """nginx over an empty folder."""
    root = tmp_path / "www"
    root.mkdir()
    tmp_path.chmod(0o755)
    try:
        with Nginx(root) as server:
            yield server, root
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which the environment names, and nobody's token."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def _with_credentials(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> AnyServer:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server
