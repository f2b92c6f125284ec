"""The servers of what is neither S3 nor plain HTTP: a GCS emulator, a registry, a hub.

Each serves the files of one folder. The hub is nginx with the answers of the Hugging Face API laid
out as files, so that it is as fast as a content delivery network's node: weights are redirected to
another host name, as the hub does with all it keeps in LFS.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha1
from pathlib import Path

from tests.servers.fake_gcs import FakeGcs, gcs_client
from tests.servers.nginx import Nginx
from tests.servers.process import Server, find_program

BUCKET = "bench"
REPOSITORY = "bench/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIX = ".safetensors"
MANIFEST_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPE = "application/vnd.cncf.model.weight.v1"

_REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: 127.0.0.1:{port}}}
"""


class KeptGcs(FakeGcs):
    """fake-gcs-server with its objects in files."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self._data = data

    def command(self) -> Sequence[str]:
        """The tests' emulator over a folder."""
        words = ["filesystem" if word == "memory" else word for word in super().command()]
        return [*words, "-filesystem-root", str(self._data)]


class KeptRegistry(Server):
    """Docker's registry over a folder that outlives it."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        self._program = find_program("docker-registry", "apt-get install docker-registry")
        self._data = data

    @property
    def host(self) -> str:
        """As a ref names it."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Without authentication, storing in files."""
        path = self.folder / "config.yml"
        path.write_text(_REGISTRY.format(data=self._data, port=self.port))
        return [self._program, "serve", str(path)]


class Hub(Nginx):
    """A repository of the files below `source`, at revision `main`."""

    def __init__(self, source: Path, folder: Path) -> None:
        super().__init__(source)
        folder.mkdir(parents=True, exist_ok=True)
        self._extra = self._answers(source, folder)

    def _answers(self, source: Path, folder: Path) -> str:
        entries = [_entry(source, path) for path in sorted(source.rglob("*")) if path.is_file()]
        info = {
            "id": REPOSITORY,
            "modelId": REPOSITORY,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "siblings": [
                {
                    "rfilename": entry["path"],
                    "size": entry["size"],
                    "blobId": entry["oid"],
                    **({"lfs": entry["lfs"]} if "lfs" in entry else {}),
                }
                for entry in entries
            ],
        }
        (folder / "info.json").write_text(json.dumps(info))
        (folder / "tree.json").write_text(json.dumps(entries))
        api = f"/api/models/{REPOSITORY}"
        listed = f"{{ alias {folder}/tree.json; default_type application/json; }}"
        told = f"{{ alias {folder}/info.json; default_type application/json; }}"
        lines = [
            f"location = {api} {told}",
            f"location = {api}/tree/{COMMIT} {listed}",
            f"location /lfs/ {{ alias {source}/; etag off; }}",
        ]
        for revision in ("main", COMMIT):
            lines.append(f"location = {api}/revision/{revision} {told}")
            lines += [self._file(source, entry, revision) for entry in entries]
        return "\n".join(lines)

    def _file(self, source: Path, entry: Mapping[str, object], revision: str) -> str:
        path = entry["path"]
        head = (
            f"location = /{REPOSITORY}/resolve/{revision}/{path} "
            f"{{ etag off; add_header X-Repo-Commit {COMMIT} always; "
        )
        lfs = entry.get("lfs")
        if isinstance(lfs, dict):
            return (
                head + f"add_header X-Linked-ETag '\"{lfs['oid']}\"' always; "
                f"add_header X-Linked-Size {entry['size']} always; "
                f"return 302 http://localhost:{self.port}/lfs/{path}; }}"
            )
        return head + f"add_header ETag '\"{entry['oid']}\"'; alias {source}/{path}; }}"


@contextmanager
def gcs(data: Path, source: Path, prefix: str) -> Iterator[str]:
    """The files as objects; gives the emulator's URL."""
    data.mkdir(exist_ok=True)
    with KeptGcs(data) as server:
        client = gcs_client(server.url)
        bucket = client.create_bucket(BUCKET)
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(source).as_posix()}"
                bucket.blob(name, chunk_size=64 << 20).upload_from_filename(str(path))
        yield server.url


@contextmanager
def registry(data: Path, source: Path, *, tar: bool) -> Iterator[str]:
    """The files as layers of one artifact, as they are or each in a tar; gives `host/name:tag`."""
    data.mkdir(exist_ok=True)
    with KeptRegistry(data) as server:
        name = f"{server.host}/{REPOSITORY}:{'tar' if tar else 'raw'}"
        folder = _as_tars(source, data.parent / "tars") if tar else source
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))]
        config = data.parent / "oci-config.json"
        config.write_text("{}")
        kind = f"{LAYER_TYPE}.{'tar' if tar else 'raw'}"
        subprocess.run(
            [
                *(find_program("oras", "run `python -m tests.tools`"), "push", "--plain-http"),
                *("--no-tty", "--artifact-type", MANIFEST_TYPE, "--disable-path-validation"),
                *("--config", f"{config}:{CONFIG_TYPE}", name),
                *(f"{path}:{kind}" for path in files),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        yield name


def _as_tars(source: Path, folder: Path) -> Path:
    """Each file in a tar of its own, as model packers make them."""
    folder.mkdir()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            name = path.relative_to(source).as_posix()
            with tarfile.open(folder / f"{name.replace('/', '-')}.tar", "w") as archive:
                archive.add(path, name)
    return folder


def _entry(source: Path, path: Path) -> dict[str, object]:
    """A file as the hub's tree lists it."""
    size = path.stat().st_size
    name = path.relative_to(source).as_posix()
    entry: dict[str, object] = {"type": "file", "path": name, "size": size}
    if path.suffix == LFS_SUFFIX:
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 135}
        entry["oid"] = sha1(digest.encode(), usedforsecurity=False).hexdigest()
        return entry
    body = path.read_bytes()
    entry["oid"] = sha1(b"blob %d\0%s" % (len(body), body), usedforsecurity=False).hexdigest()
    return entry
