"""`rclone serve s3`: a second, different S3 server; comes with the development packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.minio import s3_environment
from tests.servers.process import Server, find_program


class RcloneS3(Server):
    """Serves the sub-folders of `root` (default: a folder of its own) as buckets."""

    access_key = "modelcachetestkey"
    secret_key = "modelcachetestsecretkey"  # noqa: S105 - of a server that lives for a test
    region = "us-east-1"

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self._program = find_program("rclone", "install the development packages")
        self.root = root or self.folder / "data"
        self.root.mkdir(exist_ok=True)

    def command(self) -> Sequence[str]:
        keys = f"{self.access_key},{self.secret_key}"
        address = f"127.0.0.1:{self.port}"
        return [
            *(self._program, "serve", "s3", str(self.root), "--addr", address),
            *("--auth-key", keys, "--vfs-cache-mode", "off", "--config", "/dev/null"),
        ]

    def environment(self) -> Mapping[str, str]:
        return s3_environment(self.access_key, self.secret_key, self.region)
