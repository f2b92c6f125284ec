"""What is downloaded in each scenario, and the servers that offer it.

nginx serves a folder; MinIO has its own copy, uploaded through the S3 API, and serves it plain and
with TLS one after the other. Everything is in the page cache while it is measured.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from bench import hubs, measure
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.minio import Minio
from tests.servers.models import write_model, write_small_files
from tests.servers.nginx import Nginx
from tests.servers.uploads import s3_client, upload_tree

BUCKET = "bench"
SINGLE_FILE = "weights.safetensors"
SMALL_BYTES = 64 << 10
PIECE_BYTES = 64 << 20
PRESIGNED_S = 3600


class Scenario(StrEnum):
    """What is pulled."""

    FILE = "file"
    MODEL = "model"
    SMALL = "small"


class Transport(StrEnum):
    """How: nginx or MinIO, without and with TLS; an emulator of GCS, a registry, a hub."""

    HTTP = "http"
    S3 = "s3"
    HTTPS = "https"
    S3_TLS = "s3-tls"
    GCS = "gcs"
    OCI = "oci"
    OCI_TAR = "oci-tar"
    HF = "hf"

    @property
    def is_s3(self) -> bool:
        """Whether requests are signed and MinIO answers."""
        return self in {Transport.S3, Transport.S3_TLS}

    @property
    def is_web(self) -> bool:
        """Whether files are found by plain URLs."""
        return self in {Transport.HTTP, Transport.HTTPS}

    @property
    def is_oci(self) -> bool:
        """Whether a registry answers."""
        return self in {Transport.OCI, Transport.OCI_TAR}

    @property
    def is_tls(self) -> bool:
        """Whether it is encrypted."""
        return self in {Transport.HTTPS, Transport.S3_TLS}


@dataclass(frozen=True, slots=True)
class Origin:
    """One scenario behind one transport. raw_url: the single file, readable without signing.

    url: of the server; of a registry `host/name:tag`.
    """

    scenario: Scenario
    transport: Transport
    url: str
    tree: measure.Tree
    raw_url: str
    ca_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(digest.size_bytes for digest in self.tree.values())


class KeptMinio(Minio):
    """MinIO over a folder that outlives it."""

    def __init__(self, data: Path, tls: Certificates | None = None) -> None:
        super().__init__(tls)
        self._data = data

    def command(self) -> Sequence[str]:
        """MinIO over the kept folder."""
        own = str(self.folder / "data")
        return [str(self._data) if word == own else word for word in super().command()]

    def server_environment(self) -> Mapping[str, str]:
        """As the tests' MinIO, reading through the page cache."""
        # Reads through the page cache: its disk must not be what the clients are measured against.
        return {**super().server_environment(), "MINIO_API_ODIRECT": "off"}


class Origins:
    """Sources below `folder` for one scenario at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._certificates = make_certificates(folder / "certificates")
        self._tree: measure.Tree = {}
        self._uploaded = False

    @contextmanager
    def prepared(self, scenario: Scenario, size_bytes: int) -> Iterator[None]:
        """Make the files; remove them and MinIO's copy at the end."""
        directory = self._source(scenario)
        write(directory, scenario, size_bytes)
        self._tree = measure.tree_of(directory)
        self._uploaded = False
        try:
            yield
        finally:
            for used in (self._folder / "source", self._folder / "minio"):
                shutil.rmtree(used, ignore_errors=True)

    @contextmanager
    def serving(self, scenario: Scenario, transport: Transport) -> Iterator[Origin]:
        """Start the server of this transport."""
        tls = self._certificates if transport.is_tls else None
        if not (transport.is_web or transport.is_s3):
            with self._hub(scenario, transport) as url:
                yield self._origin(scenario, transport, url, "", {})
            return
        if transport.is_web:
            with Nginx(self._folder / "source", tls) as nginx:
                url = f"{nginx.url}/{scenario}"
                raw = f"{url}/{SINGLE_FILE}"
                yield self._origin(scenario, transport, url, raw, {})
            return
        self._upload(scenario)
        with KeptMinio(self._folder / "minio", tls) as minio:
            environment = {
                **minio.environment(),
                "AWS_ENDPOINT_URL": minio.url,
                "S3_ENDPOINT_URL": minio.url,
            }
            client = s3_client(minio, self._certificates.ca_file if tls else None)
            raw = client.generate_presigned_url(
                "get_object",
                Params={"Bucket": BUCKET, "Key": f"{scenario}/{SINGLE_FILE}"},
                ExpiresIn=PRESIGNED_S,
            )
            yield self._origin(scenario, transport, minio.url, raw, environment)

    @contextmanager
    def _hub(self, scenario: Scenario, transport: Transport) -> Iterator[str]:
        source, data = self._source(scenario), self._folder / "hub"
        data.mkdir()
        print(f"  preparing {scenario} for {transport}", file=sys.stderr)
        try:
            match transport:
                case Transport.GCS:
                    with hubs.gcs(data / "gcs", source, scenario) as url:
                        yield url
                case Transport.OCI | Transport.OCI_TAR:
                    tar = transport is Transport.OCI_TAR
                    with hubs.registry(data / "registry", source, tar=tar) as url:
                        yield url
                case _:
                    with hubs.Hub(source, data) as hub:
                        yield hub.url
        finally:
            shutil.rmtree(data)

    def warm(self, origin: Origin) -> None:
        """Bring what this origin serves into the page cache."""
        folders = {Transport.S3: "minio", Transport.S3_TLS: "minio", Transport.GCS: "hub/gcs"}
        folders |= {Transport.OCI: "hub/registry", Transport.OCI_TAR: "hub/registry"}
        served = folders.get(origin.transport)
        measure.warm(self._folder / served if served else self._source(origin.scenario))

    def _origin(
        self,
        scenario: Scenario,
        transport: Transport,
        url: str,
        raw_url: str,
        environment: Mapping[str, str],
    ) -> Origin:
        ca_file = self._certificates.ca_file
        trust = {
            "AWS_CA_BUNDLE": str(ca_file),
            "SSL_CERT_FILE": str(ca_file),
            "MODELCACHE_HTTP_CA_FILE": str(ca_file),
        }
        return Origin(
            scenario,
            transport,
            url,
            self._tree,
            raw_url,
            ca_file,
            {**environment, **(trust if transport.is_tls else {})},
        )

    def _source(self, scenario: Scenario) -> Path:
        return self._folder / "source" / scenario

    def _upload(self, scenario: Scenario) -> None:
        if self._uploaded:
            return
        print(f"  uploading {scenario} to MinIO", file=sys.stderr)
        with KeptMinio(self._folder / "minio") as minio:
            upload_tree(minio, BUCKET, scenario, self._source(scenario))
        self._uploaded = True


def write(directory: Path, scenario: Scenario, size_bytes: int) -> None:
    """Make a scenario's files; `size_bytes` is what they have together, about."""
    print(f"  writing {scenario}", file=sys.stderr)
    directory.mkdir(parents=True)
    match scenario:
        case Scenario.FILE:
            random = np.random.Generator(np.random.PCG64(1))
            with (directory / SINGLE_FILE).open("wb") as file:
                for start in range(0, size_bytes, PIECE_BYTES):
                    file.write(random.bytes(min(PIECE_BYTES, size_bytes - start)))
        case Scenario.MODEL:
            write_model(directory, size_bytes, 8, 2)
        case Scenario.SMALL:
            write_small_files(directory, max(1, size_bytes // SMALL_BYTES), SMALL_BYTES, 3)
